"""Checks of a whole recipe before any process group exists; all problems are found at once."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

from megatron_resrl.checks.facts import RunFacts, Target, gather_facts
from megatron_resrl.checks.named_paths import setting_error
from megatron_resrl.checks.pretrain import PRETRAIN_CHECKS
from megatron_resrl.checks.reinforcement import EVAL_CHECKS, TRAIN_CHECKS
from megatron_resrl.checks.sft import SFT_CHECKS
from megatron_resrl.checks.vllm import SERVE_CHECKS
from megatron_resrl.config.problems import Problem, RecipeError
from megatron_resrl.config.schema import RunSettings
from megatron_resrl.config.stages import Command

CHECKS: dict[Command, tuple[Callable[[Any], Iterator[Problem]], ...]] = {
    "train": TRAIN_CHECKS,
    "eval": EVAL_CHECKS,
    "sft": SFT_CHECKS,
    "pretrain": PRETRAIN_CHECKS,
    "serve": SERVE_CHECKS,
}
"""What each command needs of its recipe."""


def inspect_recipe(
    recipe: RunSettings,
    world_size: int,
    command: Command = "train",
    target: Target = "here",
) -> list[Problem]:
    """Everything that the checks have to say about a recipe.

    Args:
        recipe: The settings, of the kind that the command takes.
        world_size: Ranks of the run.
        command: What the recipe is wanted for; evaluation needs no training data.
        target: The machine that the run is for.

    Returns:
        Problems of the recipe and of this machine, and notes; see `Problem.kind`.
    """
    return inspect_facts(*gather_facts(recipe, world_size, target), command)


def inspect_facts(
    facts: RunFacts, model_problems: Sequence[Problem], command: Command = "train"
) -> list[Problem]:
    """Like `inspect_recipe`, with facts that others may use, too.

    Args:
        facts: From `gather_facts`.
        model_problems: What `gather_facts` found.
        command: What the recipe is wanted for.
    """
    problems = list(model_problems)
    for check in CHECKS[command]:
        try:
            problems.extend(check(facts))
        except OSError as error:
            found = setting_error(facts.recipe, error)
            if found is None:
                raise
            problems.append(replace(Problem.of(found), kind="machine"))
    return problems


def check_recipe(recipe: RunSettings, world_size: int, command: Command = "train") -> list[Problem]:
    """Finds every problem that a recipe has on this machine.

    Args:
        recipe: The settings, of the kind that the command takes.
        world_size: Ranks of the run.
        command: What the recipe is wanted for; evaluation needs no training data.

    Returns:
        The problems, without notes; empty if the recipe can be run.
    """
    return [found for found in inspect_recipe(recipe, world_size, command) if found.kind != "note"]


def require_valid(
    recipe: RunSettings, world_size: int, command: Command = "train"
) -> list[Problem]:
    """Refuses a recipe that cannot be run here.

    Returns:
        The notes on it.

    Raises:
        RecipeError: With every problem found by `check_recipe`.
    """
    found = inspect_recipe(recipe, world_size, command)
    if problems := [each for each in found if each.kind != "note"]:
        raise RecipeError(problems)
    return found
