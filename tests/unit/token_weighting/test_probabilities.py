"""Weights by the engine's log-probs, against a small batch by hand."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from megatron_resrl.config.schema import AlgorithmConfig, ResrlConfig
from megatron_resrl.errors import SettingError
from megatron_resrl.token_weighting.context import WeightingContext
from megatron_resrl.token_weighting.probabilities import extreme_tokens
from megatron_resrl.token_weighting.registry import (
    ChosenWeighting,
    chosen_weighting,
    get_weighting,
    require_weighting,
)

P = torch.tensor([[0.5, 0.1, 0.9, 0.2], [0.4, 0.3, 0.6, 0.7], [0.2, 0.2, 1.0, 1.0]])
MASK = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 1], [1, 1, 0, 0]], dtype=torch.bool)
BATCH = SimpleNamespace(
    rollout_log_probs=P.double().log(),
    loss_mask=MASK,
    positive=torch.tensor([True, False, False]),
)


def weights(name: str, **options: Any) -> Tensor:
    algorithm = AlgorithmConfig(weighting=name, weighting_options=options)
    chosen = chosen_weighting(algorithm, ResrlConfig(), weighted=False)
    context = WeightingContext(None, ResrlConfig(), 0, 0, name=name, options=chosen.options)
    return get_weighting(chosen, context).weights(BATCH)


@pytest.mark.setting("algorithm.weighting_options")
def test_negative_filter_punishes_the_least_likely_tokens() -> None:
    assert weights("negative_filter")[1:, :].mul(MASK[1:]).tolist() == [[0, 1, 0, 0], [1, 0, 0, 0]]
    kept = weights("negative_filter", keep=0.7) * MASK
    assert kept.tolist() == [[1, 1, 1, 1], [1, 1, 0, 0], [1, 0, 0, 0]]


def test_a3po_scales_the_surprising_tokens_of_each_side() -> None:
    found = weights("a3po", share=0.5, positive_scale=3.0, negative_scale=4.0)
    assert found.tolist() == [[1, 3, 1, 3], [1, 1, 1, 4], [4, 1, 1, 1]]
    assert weights("a3po").tolist() == [[1, 5, 1, 1], [1, 1, 1, 5], [5, 1, 1, 1]]


def test_probability_weights_both_sides_alike() -> None:
    torch.testing.assert_close(weights("probability", alpha=0.5), 0.5 * P.double() + 0.5)
    assert (weights("probability", alpha=0.0) == 1).all()


def test_extreme_tokens_are_a_share_rounded_down_but_one() -> None:
    values = torch.arange(10.0).flip(0)[None]
    mask = torch.ones(1, 10, dtype=torch.bool)
    for share, count in ((0.01, 1), (0.19, 1), (0.3, 3), (1.0, 10)):
        found = extreme_tokens(values, mask, share)
        assert found.sum() == count
        assert found[0, -count:].all()
    assert not extreme_tokens(values, ~mask, 0.5).any()


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("a3po", {"shar": 0.1}, "'shar', did you mean 'share'?; a3po takes: share, positive_scale"),
        ("a3po", {"share": 0}, "share is out of range; it must be above 0 and at most 1"),
        ("negative_filter", {"keep": "0.1"}, "keep is not a number"),
        ("resrl", {"floor": 0.1}, "resrl takes: no options"),
    ],
)
def test_weighting_options_that_cannot_be_used_are_refused(name, options, words) -> None:
    with pytest.raises(SettingError) as caught:
        require_weighting(ChosenWeighting(name, "algorithm.weighting", options))
    assert caught.value.setting == "algorithm.weighting_options"
    assert words in str(caught.value)


def test_weighting_options_of_the_users_own_stay_as_they_are() -> None:
    chosen = ChosenWeighting("mine.py:W", "algorithm.weighting", {"a": "b"})
    assert chosen.options == {"a": "b"}
