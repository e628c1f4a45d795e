"""The command `launch`."""

from __future__ import annotations

import dataclasses
import shlex
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from megatron_resrl.checks.facts import RunFacts, Target, gather_facts
from megatron_resrl.checks.recipe import inspect_facts
from megatron_resrl.config.load import load_recipe
from megatron_resrl.config.problems import Problem, RecipeError, listed
from megatron_resrl.config.schema import Recipe, RunSettings
from megatron_resrl.config.stages import STAGES
from megatron_resrl.errors import InputError
from megatron_resrl.launch.array import read_array
from megatron_resrl.launch.cluster import ask_cluster, cluster_problems
from megatron_resrl.launch.forecast import save_seconds, step_seconds
from megatron_resrl.launch.limits import limit_problems, save_before, time_budget
from megatron_resrl.launch.options import JobStage, LaunchOptions, take_options
from megatron_resrl.launch.script import Job, render
from megatron_resrl.launch.submit import frozen, submit

_OF_A_NODE = ("/tmp", "/var/tmp", "/dev/shm", "/run")
"""Folders that each node has for itself, on most clusters."""


def run_launch(
    recipes: Sequence[str], arguments: list[str], prepare: Callable[[RunSettings], None]
) -> int:
    """Prints the scripts of a chain of jobs, or submits them.

    Args:
        recipes: Files, each with its stage before a colon where it is not that of `--stage`.
        arguments: Command line behind them.
        prepare: Called with a recipe before it is checked.

    Returns:
        Exit status 0.

    Raises:
        RecipeError: Something is wrong with a recipe, or does not fit to the cluster.
        InputError: An option cannot be used; Slurm is absent or refuses a job.
    """
    options, settings = take_options(arguments)
    if not recipes:
        raise InputError("launch: no recipe is given; write megatron-resrl launch RECIPE.yaml")
    if options.array and len(recipes) > 1:
        raise InputError(
            f"--array {options.array}: a chain of {len(recipes)} recipes has no array, as its jobs "
            "read each other's models; submit one chain for each run"
        )
    command = shlex.join(["megatron-resrl", "launch", *recipes, *arguments])
    jobs: list[Job] = []
    for text in recipes:
        jobs.append(_job(text, options, settings, command, jobs, prepare))
    if not options.submit:
        print("\n".join(map(render, jobs)), end="")
        return 0
    _require(list(cluster_problems(options, ask_cluster())))
    before = None  # What --after names is in the first script.
    for number, job in enumerate(jobs):
        if number:
            job = dataclasses.replace(job, options=dataclasses.replace(options, after=None))
        kept, script = frozen(job)
        before = submit(script, before)
        print(f"{before}: {kept.name} ({job.stage}), log in {kept.log_folder}, script {script}")
    return 0


def _job(
    text: str,
    options: LaunchOptions,
    settings: Sequence[str],
    command: str,
    before: Sequence[Job],
    prepare: Callable[[RunSettings], None],
) -> Job:
    """The job of one recipe; notes on it go to standard error."""
    stage, path = _stage_of(text, options.stage)
    kind = Recipe if stage == "eval" else STAGES[stage]
    recipe = load_recipe(path, settings, kind)
    array = read_array(options.array) if options.array else None
    for own in array.settings if array else ():
        load_recipe(path, [*settings, *own], kind)
    rollout_nodes = recipe.vllm.nodes if isinstance(recipe, Recipe) else 0
    _require(list(_rollout_problems(rollout_nodes, options.nodes)))
    maker = next((job for job in before if _lies_in(recipe.model.path, job.output_dir)), None)
    step_s, save_s = None, 0.0
    if maker is not None:
        said = f"{path}: its model comes from {maker.stage}, and it is checked when its job starts"
        print(said, file=sys.stderr)
    else:
        prepare(recipe)
        world_size = (options.nodes - rollout_nodes) * options.ranks_on_node
        facts = _checked(recipe, path, stage, world_size, options)
        step_s, save_s = step_seconds(facts, options), save_seconds(facts)
    lead = options.save_before or save_before(step_s, save_s)
    _require(list(limit_problems(options.time, lead, step_s)))
    _note(list(_output_notes(recipe.output_dir, options)), path)
    bounded = options.time is not None and recipe.time_budget is None and stage != "eval"
    return Job(
        command=command,
        stage=stage,
        recipe=path,
        settings=tuple(settings),
        output_dir=recipe.output_dir,
        options=options,
        save_before=lead,
        array=array,
        rollout_nodes=rollout_nodes,
        time_budget=time_budget(options.time) if bounded and options.time else None,
        tensor_parallel=recipe.parallel.tensor_model_parallel_size > 1,
    )


def _checked(
    recipe: RunSettings, path: str, stage: JobStage, world_size: int, options: LaunchOptions
) -> RunFacts:
    """The facts of a recipe that passes its checks.

    Raises:
        RecipeError: It does not.
    """
    target: Target = "cuda" if options.gpus_per_node else "here"
    facts, problems = gather_facts(recipe, world_size, target)
    problems = [
        problem
        for problem in inspect_facts(facts, problems, stage)
        # The script says where ranks and nodes that only generate meet.
        if (problem.setting, problem.kind) != ("vllm.nodes", "machine")
    ]
    # A login node sees what the job will see, and not what is inside of a container.
    here = options.submit and not options.container
    wrong = [
        problem
        for problem in problems
        if problem.kind == "recipe" or (here and problem.kind == "machine")
    ]
    _require(wrong)
    _note([problem for problem in problems if problem not in wrong], path)
    return facts


def _stage_of(text: str, default: JobStage) -> tuple[JobStage, str]:
    """`sft:recipe.yaml` -> sft and the file; without a stage the default one."""
    commands: dict[str, JobStage] = {"eval": "eval", **{name: name for name in STAGES}}
    stage, colon, path = text.partition(":")
    if colon and stage in commands:
        return commands[stage], path
    return default, text


def _lies_in(path: str, folder: str) -> bool:
    return bool(path) and Path(path).resolve().is_relative_to(Path(folder).resolve())


def _rollout_problems(rollout_nodes: int, nodes: int) -> Iterator[Problem]:
    if rollout_nodes and rollout_nodes >= nodes:
        problem = f"the job has {nodes} nodes (--nodes), of which none would train"
        yield Problem("vllm.nodes", rollout_nodes, problem, "give fewer, or more --nodes")


def _output_notes(output_dir: str, options: LaunchOptions) -> Iterator[Problem]:
    place = Path(output_dir).resolve()
    if options.nodes > 1 and any(place.is_relative_to(each) for each in _OF_A_NODE):
        problem = "on most clusters each node has such a folder for itself"
        fix = "give one on a file system that all nodes share, or the job will refuse it"
        yield Problem("output_dir", output_dir, problem, fix, "note")


def _require(problems: Sequence[Problem]) -> None:
    if problems:
        raise RecipeError(problems)


def _note(problems: Sequence[Problem], path: str) -> None:
    if problems:
        print("\n".join(listed(f"{path}: look at", problems)), file=sys.stderr)
