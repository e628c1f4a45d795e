"""Controls of any weighting: what they keep of its weights, and what they do not."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from one_step import step_recipe, take_step, training_batch, weigh, weighting_of
from tiny_rollouts import rollouts
from torch import Tensor

from megatron_resrl.config.schema import Recipe
from megatron_resrl.errors import SettingError
from megatron_resrl.rollout.worker import build_policy
from megatron_resrl.token_weighting.registry import ChosenWeighting, require_weighting

SHEAR = {"span": 4, "stride": 2}


def recipe_of(model: Path, weighting: str, **options: Any) -> Recipe:
    recipe = step_recipe(model)
    algorithm = replace(
        recipe.algorithm, name="grpo", weighting=weighting, weighting_options=options
    )
    return replace(recipe, algorithm=algorithm)


def weights_of(model: Path, weighting: str, step: int = 1, **options: Any) -> Tensor:
    """[B, T] of responses two of whose tokens of every five are an environment's."""
    recipe = recipe_of(model, weighting, **options)
    policy = build_policy(recipe, trainable=False)
    batch = training_batch(*rollouts(masked=True))
    return weigh(policy, recipe, batch, weighting_of(policy, recipe), step).weights


@pytest.mark.parametrize("of", [{"of": "shear"} | SHEAR, {}])
def test_shuffled_keeps_every_moment_of_each_response(qwen3_on_one_rank: Path, of: dict) -> None:
    """Of SHEAR's weights, and by default of ResRL's."""
    name = of.get("of", "resrl")
    own = {option: value for option, value in of.items() if option != "of"}
    plain = weights_of(qwen3_on_one_rank, name, **own)
    found, again, later = (
        weights_of(qwen3_on_one_rank, "shuffled", step, **of) for step in (1, 1, 2)
    )
    mask = training_batch(*rollouts(masked=True)).loss_mask
    for row in range(len(mask)):
        weights = plain[row][mask[row]].sort().values
        torch.testing.assert_close(found[row][mask[row]].sort().values, weights, rtol=0, atol=0)
        assert torch.equal(found[row][~mask[row]], plain[row][~mask[row]])
    assert not torch.equal(found, plain)
    # Keyed by the step: the same where it is taken again, and else not.
    assert torch.equal(again, found)
    assert not torch.equal(later, found)


def test_averaged_keeps_the_mean_of_each_response(qwen3_on_one_rank: Path) -> None:
    plain = weights_of(qwen3_on_one_rank, "shear", **SHEAR)
    found = weights_of(qwen3_on_one_rank, "averaged", of="shear", **SHEAR)
    mask = training_batch(*rollouts(masked=True)).loss_mask
    for row in range(len(mask)):
        mean = plain[row][mask[row]].double().mean()
        expected = mean.float().expand(int(mask[row].sum()))
        torch.testing.assert_close(found[row][mask[row]], expected, rtol=1e-6, atol=0)
    assert len(found[mask].unique()) > 3


@pytest.mark.parametrize("of", ["resrl", "shear", "a3po"])
def test_shuffled_step_has_the_mass_of_what_it_controls(qwen3_on_one_rank: Path, of: str) -> None:
    """Also `resrl.positive_weight` is that of the weighting: the loss of both has the same terms.
    The states of some are read, of others not."""
    options = SHEAR if of == "shear" else {}
    masses = []
    for recipe in (
        recipe_of(qwen3_on_one_rank, of, **options),
        recipe_of(qwen3_on_one_rank, "shuffled", of=of, **options),
    ):
        metrics = take_step(build_policy(recipe), recipe, rollouts()[0]).metrics
        masses.append(metrics["resrl/negative_mass"])
        # At the first update all ratios are 1: the loss is the sum of advantages times weights.
        masses.append(metrics["loss"])
    assert masses[2:] == pytest.approx(masses[:2], rel=1e-5, abs=1e-7)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"of": "sheer"}, "there is no such token weighting (did you mean 'shear'?)"),
        ({"of": "averaged"}, "a control cannot be controlled"),
        ({"of": "shear", "spam": 3}, "it has 'spam', did you mean 'span'?"),
        ({"of": "absent.py:Mine"}, "there is no file"),
    ],
)
def test_control_of_what_cannot_be_controlled_is_refused(options, words) -> None:
    with pytest.raises(SettingError) as caught:
        require_weighting(ChosenWeighting("shuffled", "algorithm.weighting", options))
    assert caught.value.setting == "algorithm.weighting_options"
    assert words in str(caught.value)


def test_control_is_known_by_what_it_controls() -> None:
    def entry(**options: Any):
        return ChosenWeighting("shuffled", "algorithm.weighting", options).entry

    assert entry().of_resrl
    assert entry().only_incorrect
    assert not entry(of="shear").of_resrl
    assert not entry(of="a3po").reads_states
    assert entry(of="a3po").whole_groups
