"""The options of `launch`, which are no settings of a recipe."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from megatron_resrl.config.options import separate_options
from megatron_resrl.config.recipe_schema import schema_of
from megatron_resrl.config.stages import STAGES
from megatron_resrl.errors import SettingError, closest
from megatron_resrl.launch.slurm_time import seconds_of

Tasks = Literal["per_node", "per_gpu"]
"""What srun starts: one torchrun on each node, or each rank by itself."""

JobStage = Literal["train", "sft", "pretrain", "eval"]
"""Commands that a job of its own runs."""

_DEFAULT_REQUEUES = 3


@dataclass(frozen=True)
class LaunchOptions:
    """Nodes, environment and course of a job; see `options_parser` for each."""

    stage: JobStage = "train"
    nodes: int = 1
    gpus_per_node: int = 8
    ranks_per_node: int | None = None
    cpus_per_node: int | None = None
    tasks: Tasks = "per_node"
    time: str | None = None
    save_before: int | None = None
    requeue: int | None = None
    job_name: str | None = None
    partition: str | None = None
    account: str | None = None
    exclude: str | None = None
    after: str | None = None
    array: str | None = None
    venv: str | None = None
    container: str | None = None
    container_mounts: str | None = None
    setup: tuple[str, ...] = ()
    interface: str | None = None
    sbatch: tuple[str, ...] = ()
    gpu: str = "h100"
    submit: bool = False

    @property
    def ranks_on_node(self) -> int:
        """Ranks of each node: one per GPU, and one on nodes without GPUs."""
        return self.ranks_per_node or self.gpus_per_node or 1


def options_parser() -> argparse.ArgumentParser:
    """A parser of the options, which leaves settings of the recipe alone."""
    parser = argparse.ArgumentParser(
        prog="megatron-resrl launch",
        usage="megatron-resrl launch [STAGE:]RECIPE.yaml ... [options] [--setting VALUE ...]",
        description=(
            "Prints a batch script for Slurm, or submits it. Several recipes are a chain: each job "
            "starts when the one before it is done."
        ),
        add_help=False,
        allow_abbrev=False,
        exit_on_error=False,
    )
    defaults = LaunchOptions()

    def add(name: str, convert: Callable[[str], object], meaning: str, **more: object) -> None:
        default = getattr(defaults, name)
        parser.add_argument(
            *_spellings(name),
            type=convert,
            default=default,
            help=meaning,
            **more,  # type: ignore[arg-type]
        )

    parser.add_argument("--submit", action="store_true", help="submit it, too; print the job's id")
    stages = get_args(JobStage)
    meaning = f"command of recipes without STAGE: ({', '.join(stages)}; default: train)"
    parser.add_argument("--stage", choices=stages, default=defaults.stage, help=meaning)
    add("nodes", _count, "nodes of the job (default: 1)")
    add("gpus_per_node", _number, "GPUs of each (default: 8); 0: the ranks run on CPUs")
    add("ranks_per_node", _count, "ranks of each (default: one per GPU)")
    meaning = "CPUs of each; others may use the rest (default: whole nodes with all their memory)"
    add("cpus_per_node", _count, meaning)
    kinds = get_args(Tasks)
    meaning = "what srun starts: one torchrun per_node (default), or a rank per_gpu"
    parser.add_argument("--tasks", choices=kinds, default=defaults.tasks, help=meaning)
    add("time", _time_limit, "time limit as Slurm writes it, e.g. 04:00:00 (default: partition's)")
    meaning = "seconds before the limit at which the run is asked to save and end (default: 600, "
    add("save_before", _count, meaning + "or what two steps and two saves take by `plan`)")
    meaning = (
        "run again until all steps are done, after a time limit and after failures; give up after "
        f"N times without a new checkpoint (default N: {_DEFAULT_REQUEUES})"
    )
    more = {"nargs": "?", "const": _DEFAULT_REQUEUES, "metavar": "N"}
    add("requeue", _count, meaning, **more)
    add("job_name", str, "name of the job (default: the last part of output_dir)")
    add("partition", str, "partition to run in (default: the cluster's)")
    add("account", str, "account to charge")
    add("exclude", str, "nodes to leave out, e.g. node[3-5]")
    add("after", _job_id, "start when this job has ended well")
    meaning = (
        "one run for each number, which is its seed, e.g. 0-4; or a file with the settings of a "
        "run in each line; behind %% how many may run at a time, e.g. 0-9%%2"
    )
    add("array", str, meaning)
    add("venv", str, "virtual environment to activate (default: the one of the submission)")
    add("container", str, "image to run in, by pyxis and enroot, e.g. image.sqsh")
    add("container_mounts", str, "what it sees (default: the current directory)")
    meaning = "line of shell before the run, e.g. 'module load cuda'; may be given several times"
    parser.add_argument("--setup", action="append", default=[], metavar="LINE", help=meaning)
    add("interface", str, "network interface of NCCL and gloo, where they choose a wrong one")
    meaning = "option of sbatch as it is, e.g. --sbatch=--qos=high; may be given several times"
    parser.add_argument("--sbatch", action="append", default=[], metavar="OPTION", help=meaning)
    add("gpu", str, "GPU for the forecast of a step's seconds, see `plan` (default: h100)")
    return parser


def take_options(arguments: Sequence[str]) -> tuple[LaunchOptions, list[str]]:
    """Separates the options of `launch` from settings of the recipe.

    Args:
        arguments: Command line behind the recipes.

    Returns:
        The options, and what is left for the recipe, in its order.

    Raises:
        SettingError: An option has no value, or none that is possible, or does not exist.
    """
    found, rest = separate_options(options_parser(), arguments)
    given = vars(found)
    given |= {name: tuple(given[name]) for name in ("setup", "sbatch")}
    for token in rest:
        _refuse_unknown(token)
    return LaunchOptions(**given), rest


def _refuse_unknown(token: str) -> None:
    """Names without a dot are options, or settings at the top of a recipe."""
    name, _, value = token.partition("=")
    if not name.startswith("--") or "." in name:
        return
    schemas = [schema_of(kind) for kind in STAGES.values()]
    known = {each for schema in schemas for each in (*schema.settings, *schema.sections)}
    if name.removeprefix("--").replace("-", "_") in known:
        return
    options = [f"--{each}" for each in vars(LaunchOptions())]
    top = [f"--{each}" for each in known if "." not in each]
    near = closest(name.replace("-", "_").replace("__", "--", 1), [*options, *top])
    fix = f"did you mean {near}?" if near else "`megatron-resrl launch --help` lists the options"
    problem = "neither an option of launch nor a setting of a recipe"
    raise SettingError(name, value or None, problem, fix)


def _spellings(name: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys((f"--{name}", f"--{name.replace('_', '-')}")))


def _number(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 0")
    return int(text)


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return int(text)


def _job_id(text: str) -> str:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not the number of a job")
    return text


def _time_limit(text: str) -> str:
    try:
        seconds_of(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r}: {error}") from error
    return text
