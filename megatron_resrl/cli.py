"""The commands: train, sft, pretrain, eval, check and plan. Their work is in the rooms below."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import typing
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal, NamedTuple, NoReturn, TypeVar

from megatron_resrl import __version__
from megatron_resrl.checks.data import first_prompt
from megatron_resrl.checks.facts import Facts, Target, gather_facts
from megatron_resrl.checks.named_paths import named_paths
from megatron_resrl.checks.recipe import inspect_facts, require_valid
from megatron_resrl.checks.sizes import plan as size_lines
from megatron_resrl.config.load import load_recipe, read_recipe, recipe_yaml
from megatron_resrl.config.problems import Problem, RecipeError, listed
from megatron_resrl.config.recipe_schema import schema_of
from megatron_resrl.config.schema import Recipe, RunSettings
from megatron_resrl.config.schema_pretrain import PretrainRecipe
from megatron_resrl.config.schema_rollout import RolloutConfig
from megatron_resrl.config.schema_sft import SftRecipe
from megatron_resrl.config.stages import STAGES, Command, Stage
from megatron_resrl.errors import UNUSABLE, InputError, RunError, exit_status
from megatron_resrl.planning.command import run_plan
from megatron_resrl.planning.options import options_parser, take_options
from megatron_resrl.platform.ending import process_ends_with_block, record_failure
from megatron_resrl.platform.launch import rank_variables, require_meeting_place
from megatron_resrl.rollout.weight_sync.choice import transfer_note
from megatron_resrl.user_files import split_name

R = TypeVar("R", bound=RunSettings)

PROBLEMS = 1
"""Exit status of `check` where something is wrong."""

_USAGE = """\
usage: megatron-resrl COMMAND [RECIPE.yaml] [--section.setting VALUE ...]

Reinforcement learning with verifiable rewards on megatron-core, and the stages before it.

commands:
  train    roll out, grade and update for the recipe's number of steps
  sft      fine-tune on conversations: learn what the assistant says
  eval     avg@k and pass@k of the model on the evaluation files
  pretrain train a model on token files, from fresh or given weights
  check    print the resolved recipe and everything that is wrong with it; starts nothing
           (--world_size N: the number of ranks to check for; --for cuda: judge the recipe for a
           machine with CUDA, whatever this one lacks; --stage NAME: whose recipe it is)
  plan     memory, traffic, waits and seconds of a job on GPUs, and what to change where it does
           not fit; needs no GPU and no weights (--nodes N --gpus_per_node N --gpu h100,
           --search, --json; `plan --help` has all)

Settings come from the recipe and from the command line, which wins:
  megatron-resrl train recipe.yaml --optimizer.lr 1e-5 --data.train_files '[a.jsonl, b.jsonl]'
  torchrun --nproc-per-node 2 -m megatron_resrl train recipe.yaml \\
      --parallel.tensor_model_parallel_size 2

`megatron-resrl COMMAND --help` lists all settings; `megatron-resrl --version` the version.
"""


def run() -> NoReturn:
    """Runs the command of this process and ends the process with its status."""
    with process_ends_with_block():
        sys.exit(main())


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command.

    Args:
        arguments: Command line without the program's name; default: this process's.

    Returns:
        Exit status: 0 done, 1 `check` found problems or what `plan` was asked about does not fit,
        2 the run could not start or ended with an error that explains itself; that of
        `Interrupted` if a signal ended it early, 130 if Ctrl-C did before there was a step to
        finish.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    if not given or given[0] in ("-h", "--help"):
        print(_USAGE, end="")
        return 0 if given else UNUSABLE
    if given[0] == "--version":
        print(f"megatron-resrl {__version__}")
        return 0
    command, rest = given[0], given[1:]
    if command not in COMMANDS:
        print(f"unknown command {command!r}; commands are {', '.join(COMMANDS)}", file=sys.stderr)
        return UNUSABLE
    if "-h" in rest or "--help" in rest:
        return _help(command)
    recipe = rest.pop(0) if rest and not rest[0].startswith("--") else None
    try:
        return COMMANDS[command](recipe, rest)
    except RecipeError as error:
        # The ranks of a node find the same problems; a file may be missing on one node only.
        return _ended(error, once_per_host=True)
    except (InputError, RunError) as error:
        return _ended(error, once_per_host=error.common)
    except KeyboardInterrupt:
        return _ended(KeyboardInterrupt(_where_stopped(command)), once_per_host=True)


def _help(command: str) -> int:
    summary = (COMMANDS[command].__doc__ or "").splitlines()[0]
    if command == "plan":
        options_parser().print_help()
    stage: dict[str, Stage] = {name: name for name in STAGES}
    kind = STAGES[stage.get(command, "train")]
    schema_of(kind).parser(f"megatron-resrl {command}", summary).print_help()
    return 0


def train(path: str | None, overrides: list[str]) -> int:
    """Trains the policy of a recipe."""
    recipe = _start(path, overrides, "train")
    from megatron_resrl.training.rl_loop import train as run_training

    with _activity(), named_paths(recipe):
        run_training(recipe)
    return 0


def evaluate(path: str | None, overrides: list[str]) -> int:
    """Evaluates the model of a recipe on its evaluation files."""
    recipe = _start(path, overrides, "eval")
    from megatron_resrl.evaluation.run import evaluate as run_evaluation

    with _activity(), named_paths(recipe):
        run_evaluation(recipe)
    return 0


def sft(path: str | None, overrides: list[str]) -> int:
    """Fine-tunes the model of a recipe on conversations."""
    recipe = _start(path, overrides, "sft", SftRecipe)
    from megatron_resrl.training.sft import train as run_fine_tuning

    with _activity(), named_paths(recipe):
        run_fine_tuning(recipe)
    return 0


def pretrain(path: str | None, overrides: list[str]) -> int:
    """Trains the model of a recipe on token files."""
    recipe = _start(path, overrides, "pretrain", PretrainRecipe)
    from megatron_resrl.training.pretrain import pretrain as run_pretraining

    with _activity(), named_paths(recipe):
        run_pretraining(recipe)
    return 0


def check(path: str | None, overrides: list[str]) -> int:
    """Prints the resolved recipe and everything that is wrong with it; starts nothing."""
    try:
        options, overrides = _take_options(overrides)
        recipe, problems = read_recipe(path, overrides, STAGES[options.stage])
    except RecipeError as error:
        print(error, file=sys.stderr)
        return PROBLEMS
    _prepare_megatron(recipe)
    named = {problem.setting for problem in problems}
    facts, model_problems = gather_facts(recipe, options.world_size, options.target)
    found = inspect_facts(facts, model_problems, options.stage)
    problems += [each for each in found if each.setting not in named]
    print(recipe_yaml(recipe), end="")
    for line in size_lines(facts):
        print(f"# {line}")
    if isinstance(facts, Facts):
        for line in _rollout_lines(facts):
            print(f"# {line}")
    notes = [problem for problem in problems if problem.kind == "note"]
    if notes:
        print("\n".join(f"# {line}" for line in listed("allowed, and probably not meant:", notes)))
    machine = [problem for problem in problems if problem.kind == "machine"]
    wrong = [problem for problem in problems if problem.kind == "recipe"]
    sys.stdout.flush()
    if wrong or machine:
        print(RecipeError(wrong + machine), file=sys.stderr)
    if wrong or (machine and options.target == "here"):
        return PROBLEMS
    ranks = f"{options.world_size} rank{'s' if options.world_size > 1 else ''}"
    print(f"# no problems found for {ranks}{' with CUDA' if options.target == 'cuda' else ''}")
    return 0


def _rollout_lines(facts: Facts) -> Iterator[str]:
    """What only reinforcement learning has: the first prompt, and the way of the weights."""
    if prompt := first_prompt(facts):
        yield prompt
    recipe = facts.recipe
    if chosen := transfer_note(recipe.vllm, recipe.rollout, has_cuda=facts.has_cuda):
        yield chosen


def plan(path: str | None, overrides: list[str]) -> int:
    """Forecasts memory, traffic and seconds of a recipe on GPUs; starts nothing."""
    options, settings = take_options(overrides)
    recipe = load_recipe(path, settings)
    _prepare_megatron(recipe)
    return run_plan(recipe, options)


COMMANDS: dict[str, Callable[[str | None, list[str]], int]] = {
    "train": train,
    "sft": sft,
    "eval": evaluate,
    "pretrain": pretrain,
    "check": check,
    "plan": plan,
}


class _CheckOptions(NamedTuple):
    """The options of `check`, which are no settings of a recipe."""

    world_size: int
    """Ranks to check for; default: as the launcher says, or 1."""
    target: Target
    """Machine to check for."""
    stage: Stage
    """Whose recipe it is."""


def _take_options(overrides: list[str]) -> tuple[_CheckOptions, list[str]]:
    """Separates `--world_size N`, `--for cuda` and `--stage NAME` from the settings."""
    rest: list[str] = []
    given = {"world_size": os.environ.get("WORLD_SIZE", "1"), "for": "here", "stage": "train"}
    tokens = iter(overrides)
    for token in tokens:
        name, equals, value = token.partition("=")
        option = name.removeprefix("--").replace("-", "_")
        if name.startswith("--") and option in given:
            given[option] = value if equals else next(tokens, "")
        else:
            rest.append(token)
    targets: dict[str, Target] = {name: name for name in typing.get_args(Target)}
    stages: dict[str, Stage] = {name: name for name in STAGES}
    size, target, stage = given.values()
    wrong = []
    if not size.isdecimal() or int(size) < 1:
        wrong.append(Problem("--world_size", size, "not a number of ranks", "e.g. 8"))
    if target not in targets:
        wrong.append(Problem("--for", target, "no kind of machine", "give cuda, or here"))
    if stage not in stages:
        wrong.append(Problem("--stage", stage, "no stage", f"stages are {', '.join(stages)}"))
    if wrong:
        raise RecipeError(wrong)
    return _CheckOptions(int(size), targets[target], stages[stage]), rest


@typing.overload
def _start(path: str | None, overrides: list[str], command: Literal["train", "eval"]) -> Recipe: ...


@typing.overload
def _start(path: str | None, overrides: list[str], command: Stage, kind: type[R]) -> R: ...


def _start(
    path: str | None, overrides: list[str], command: Command, kind: type[RunSettings] = Recipe
) -> RunSettings:
    """Begins the log and returns a recipe that can be run. Rank 0 logs; others only warn."""
    os.environ |= rank_variables(os.environ)
    level = logging.INFO if _rank_name() == "" else logging.WARNING
    logging.basicConfig(level=level, format=f"%(asctime)s {_rank_name()}%(message)s")
    logging.getLogger("megatron").setLevel(logging.WARNING)
    logging.getLogger("httpx").setLevel(logging.WARNING)  # It says every request.
    recipe = load_recipe(path, overrides, kind)
    _prepare_megatron(recipe)
    notes = require_valid(recipe, int(os.environ.get("WORLD_SIZE", "1")), command)
    require_meeting_place(os.environ)
    if _rank_name() == "":
        for note in notes:
            logging.getLogger(__name__).warning("%s", note)
    _adapt()
    from megatron_resrl.platform.libraries import prepare_libraries

    # Without rollouts no server shares the GPUs, as with the embedded engine.
    rollout = recipe.rollout if isinstance(recipe, Recipe) else RolloutConfig()
    prepare_libraries(recipe.precision, rollout)
    return recipe


def _activity() -> contextlib.AbstractContextManager[Any]:
    """Rank 0 says what it does where it takes long."""
    from megatron_resrl.observe.activity import Activity

    return Activity() if _rank_name() == "" else contextlib.nullcontext()


def _prepare_megatron(recipe: RunSettings) -> None:
    """Adapts megatron-core if the checks are going to import it, which takes seconds."""
    passed_through = recipe.model.megatron or recipe.optimizer.megatron or recipe.parallel.ddp
    reads_tokens = isinstance(recipe, PretrainRecipe)
    own_weighting = isinstance(recipe, Recipe) and split_name(recipe.resrl.weights)
    if passed_through or reads_tokens or own_weighting:
        _adapt()


def _adapt() -> None:
    """Before anything imports megatron-core, which warns of what a CPU lacks when imported."""
    from megatron_resrl.platform.cpu import adapt_megatron_core

    adapt_megatron_core()


def _ended(error: BaseException, *, once_per_host: bool = False) -> int:
    """Says why the process ends, also to torchrun. Returns its status."""
    if not once_per_host or os.environ.get("LOCAL_RANK", "0") == "0":
        print(f"{_rank_name()}{error}", file=sys.stderr)
    record_failure(error)
    return exit_status(error)


def _where_stopped(command: str) -> str:
    phases = sys.modules.get("megatron_resrl.platform.phases")
    step = phases.current_step() if phases else None
    if command not in STAGES:
        return "stopped by Ctrl-C"
    if step is None:
        return "stopped by Ctrl-C before the first step; the same command starts again"
    return (
        f"stopped by Ctrl-C in step {step}, which is lost; the same command continues from the "
        "newest checkpoint"
    )


def _rank_name() -> str:
    rank = os.environ.get("RANK", "0")
    return "" if rank == "0" else f"rank {rank}: "
