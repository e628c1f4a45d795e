"""The command `check`. Its work is in `checks/`."""

from __future__ import annotations

import os
import sys
import typing
from collections.abc import Iterator
from functools import partial
from typing import NamedTuple

from megatron_resrl.checks.data import first_prompt
from megatron_resrl.checks.facts import Facts, Target, gather_facts
from megatron_resrl.checks.recipe import inspect_facts
from megatron_resrl.checks.rewards import sandbox_note
from megatron_resrl.checks.sizes import plan as size_lines
from megatron_resrl.cli.command import CliCommand, print_settings
from megatron_resrl.cli.start import prepare_megatron
from megatron_resrl.config.load import read_recipe, recipe_yaml
from megatron_resrl.config.problems import Problem, RecipeError, listed
from megatron_resrl.config.schema import Recipe
from megatron_resrl.config.stages import STAGES, Stage
from megatron_resrl.rollout.weight_sync.choice import transfer_note

PROBLEMS = 1
"""Exit status where something is wrong."""


class _Options(NamedTuple):
    """The options of `check`, which are no settings of a recipe."""

    world_size: int
    """Ranks to check for; default: as the launcher says, or 1."""
    target: Target
    """Machine to check for."""
    stage: Stage
    """Whose recipe it is."""


def _check(path: str | None, overrides: list[str]) -> int:
    try:
        options, overrides = _take_options(overrides)
        recipe, problems = read_recipe(path, overrides, STAGES[options.stage])
    except RecipeError as error:
        print(error, file=sys.stderr)
        return PROBLEMS
    prepare_megatron(recipe)
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
    """What only reinforcement learning has: the first prompt, where weights go, the sandbox."""
    if prompt := first_prompt(facts):
        yield prompt
    recipe = facts.recipe
    if chosen := transfer_note(recipe.vllm, recipe.rollout, has_cuda=facts.has_cuda):
        yield chosen
    if sandbox := sandbox_note(facts):
        yield sandbox


def _take_options(overrides: list[str]) -> tuple[_Options, list[str]]:
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
    return _Options(int(size), targets[target], stages[stage]), rest


CHECK = CliCommand(
    _check,
    """\
print the resolved recipe and everything that is wrong with it; starts nothing
(--world_size N: the number of ranks to check for; --for cuda: judge the recipe for a
machine with CUDA, whatever this one lacks; --stage NAME: whose recipe it is)""",
    partial(
        print_settings,
        "check",
        "Prints the resolved recipe and everything that is wrong with it; starts nothing.",
        Recipe,
    ),
    settings_of=lambda arguments: _take_options(arguments)[1],
)
