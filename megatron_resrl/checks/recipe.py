"""Checks of a whole recipe before any process group exists; all problems are found at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

from megatron_resrl.checks.algorithm import ALGORITHM_CHECKS
from megatron_resrl.checks.checkpoint import CHECKPOINT_CHECKS
from megatron_resrl.checks.collection import COLLECTION_CHECKS
from megatron_resrl.checks.correction import CORRECTION_CHECKS
from megatron_resrl.checks.data import DATA_ROW_CHECKS, RUN_ROW_CHECKS
from megatron_resrl.checks.environments import ENVIRONMENT_CHECKS
from megatron_resrl.checks.experts import EXPERT_CHECKS
from megatron_resrl.checks.facts import Check, Facts, Target, gather_facts
from megatron_resrl.checks.files import DATA_CHECKS, RUN_CHECKS
from megatron_resrl.checks.model import MODEL_CHECKS
from megatron_resrl.checks.named_paths import setting_error
from megatron_resrl.checks.notes import NOTES
from megatron_resrl.checks.output import OUTPUT_CHECKS, ROOM_CHECKS
from megatron_resrl.checks.parallel import PARALLEL_CHECKS
from megatron_resrl.checks.passthrough import check_passthrough
from megatron_resrl.checks.precision import PRECISION_CHECKS
from megatron_resrl.checks.rewards import ANSWER_CHECKS, REWARD_CHECKS
from megatron_resrl.checks.values import check_ranges
from megatron_resrl.checks.vllm import VLLM_CHECKS
from megatron_resrl.checks.weights import WEIGHT_CHECKS
from megatron_resrl.config.problems import Problem, RecipeError
from megatron_resrl.config.schema import Recipe

SHARED_CHECKS: tuple[Check, ...] = (
    check_ranges,
    *WEIGHT_CHECKS,
    *MODEL_CHECKS,
    *PARALLEL_CHECKS,
    *EXPERT_CHECKS,
    *PRECISION_CHECKS,
    *VLLM_CHECKS,
    *RUN_CHECKS,
    *OUTPUT_CHECKS,
    *REWARD_CHECKS,
    *RUN_ROW_CHECKS,
    *ENVIRONMENT_CHECKS,
    check_passthrough,
)
"""What training and evaluation both need."""

TRAINING_CHECKS: tuple[Check, ...] = (
    *ALGORITHM_CHECKS,
    *CORRECTION_CHECKS,
    *DATA_CHECKS,
    *ANSWER_CHECKS,
    *DATA_ROW_CHECKS,
    *CHECKPOINT_CHECKS,
    *ROOM_CHECKS,
    *COLLECTION_CHECKS,
    *NOTES,
)
"""What only training needs."""


def inspect_recipe(
    recipe: Recipe,
    world_size: int,
    command: Literal["train", "eval"] = "train",
    target: Target = "here",
) -> list[Problem]:
    """Everything that the checks have to say about a recipe.

    Args:
        recipe: The settings.
        world_size: Ranks of the run.
        command: What the recipe is wanted for; evaluation needs no training data.
        target: The machine that the run is for.

    Returns:
        Problems of the recipe and of this machine, and notes; see `Problem.kind`.
    """
    return inspect_facts(*gather_facts(recipe, world_size, target), command)


def inspect_facts(
    facts: Facts, model_problems: Sequence[Problem], command: Literal["train", "eval"] = "train"
) -> list[Problem]:
    """Like `inspect_recipe`, with facts that others may use, too.

    Args:
        facts: From `gather_facts`.
        model_problems: What `gather_facts` found.
        command: What the recipe is wanted for.
    """
    recipe, problems = facts.recipe, list(model_problems)
    checks = SHARED_CHECKS + (TRAINING_CHECKS if command == "train" else ())
    for check in checks:
        try:
            problems.extend(check(facts))
        except OSError as error:
            found = setting_error(recipe, error)
            if found is None:
                raise
            problems.append(replace(Problem.of(found), kind="machine"))
    if command == "eval" and not recipe.evaluation.files:
        fix = "give files with questions, or a folder of them"
        problems.append(Problem("evaluation.files", (), "there is nothing to evaluate", fix))
    return problems


def check_recipe(
    recipe: Recipe, world_size: int, command: Literal["train", "eval"] = "train"
) -> list[Problem]:
    """Finds every problem that a recipe has on this machine.

    Args:
        recipe: The settings.
        world_size: Ranks of the run.
        command: What the recipe is wanted for; evaluation needs no training data.

    Returns:
        The problems, without notes; empty if the recipe can be run.
    """
    return [found for found in inspect_recipe(recipe, world_size, command) if found.kind != "note"]


def require_valid(
    recipe: Recipe, world_size: int, command: Literal["train", "eval"] = "train"
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
