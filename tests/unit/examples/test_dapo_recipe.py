"""examples/algorithms/dapo.yaml is DAPO."""

from __future__ import annotations

from pathlib import Path

from megatron_resrl.config.load import load_recipe
from megatron_resrl.training.algorithm import algorithm_of, weighting_of

RECIPE = Path(__file__).resolve().parents[3] / "examples" / "algorithms" / "dapo.yaml"


def test_dapo_recipe_has_the_options_of_the_paper() -> None:
    """Clip-higher, dynamic sampling, token-level loss, soft overlong punishment; no weights."""
    recipe = load_recipe(str(RECIPE))
    algorithm = algorithm_of(recipe)
    assert (algorithm.name, algorithm.clip_low, algorithm.clip_high) == ("grpo", 0.2, 0.28)
    assert recipe.algorithm.aggregation == "token_mean"
    assert recipe.rollout.dynamic_sampling
    assert recipe.reward.overlong == "penalize"
    assert recipe.reward.overlong_penalty == 1.0
    assert 0 < recipe.reward.overlong_buffer < recipe.rollout.max_response_length
    assert weighting_of(recipe).name == "none"
