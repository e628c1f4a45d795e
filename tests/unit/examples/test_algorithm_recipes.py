"""Recipes of examples/algorithms: each is what its name says, on the files of the quickstart."""

from __future__ import annotations

from pathlib import Path

import pytest

from megatron_resrl.algorithms import KlPenalty
from megatron_resrl.checks.recipe import inspect_recipe
from megatron_resrl.config.load import load_recipe
from megatron_resrl.config.schema import Recipe
from megatron_resrl.token_weighting.options import NTHROptions
from megatron_resrl.training.algorithm import algorithm_of, weighting_of

EXAMPLES = Path(__file__).resolve().parents[3] / "examples"
QUICKSTART = EXAMPLES / "quickstart" / "recipe.yaml"
SAME_AS_QUICKSTART = ("model", "precision", "optimizer", "data", "evaluation")


def recipe_of(name: str) -> Recipe:
    return load_recipe(str(EXAMPLES / "algorithms" / f"{name}.yaml"))


@pytest.mark.parametrize(
    "path", sorted((EXAMPLES / "algorithms").glob("*.yaml")), ids=lambda p: p.stem
)
def test_algorithm_recipes_use_the_files_of_the_quickstart(path: Path) -> None:
    recipe, quickstart = load_recipe(str(path)), load_recipe(str(QUICKSTART))
    assert recipe.output_dir == f"outputs/algorithms/{path.stem}"
    for section in SAME_AS_QUICKSTART:
        assert getattr(recipe, section) == getattr(quickstart, section), section
    wrong = [each for each in inspect_recipe(recipe, 1) if each.kind == "recipe"]
    assert wrong == [], wrong


def test_kl_recipe_adds_the_penalty_of_grpo_to_the_loss() -> None:
    algorithm = algorithm_of(recipe_of("kl"))
    assert algorithm.name == "grpo"
    assert algorithm.kl == KlPenalty(0.04, "k3", "loss")


def test_distillation_recipe_learns_from_the_trained_model() -> None:
    recipe, quickstart = recipe_of("distillation"), load_recipe(str(QUICKSTART))
    assert algorithm_of(recipe).needs_teacher
    assert recipe.teacher.path == f"{quickstart.output_dir}/hf"


def test_nthr_recipe_weighs_tokens_as_in_the_paper() -> None:
    recipe = recipe_of("nthr")
    assert algorithm_of(recipe).name == "grpo"
    chosen = weighting_of(recipe)
    assert (chosen.name, chosen.options) == ("nthr", NTHROptions(beta=1.0, eta=0.0))


def test_dapo_recipe_has_the_options_of_the_paper() -> None:
    """Clip-higher, dynamic sampling, token-level loss, soft overlong punishment; no weights."""
    recipe = recipe_of("dapo")
    algorithm = algorithm_of(recipe)
    assert (algorithm.name, algorithm.clip_low, algorithm.clip_high) == ("grpo", 0.2, 0.28)
    assert recipe.algorithm.aggregation == "token_mean"
    assert recipe.rollout.dynamic_sampling
    assert recipe.reward.overlong == "penalize"
    assert recipe.reward.overlong_penalty == 1.0
    assert 0 < recipe.reward.overlong_buffer < recipe.rollout.max_response_length
    assert weighting_of(recipe).name == "none"
