"""Advantages of whole responses."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_resrl.algorithms import group_normalised
from megatron_resrl.algorithms.advantages import is_correct, outcome_advantages

ROUNDING = 1e-12
"""float64: sums of at most 30 numbers of size 2, divided by deviations of at least 0.1."""

quarter_rewards = st.integers(-8, 8).map(lambda quarters: quarters / 4)
labelled_rewards = st.lists(st.tuples(quarter_rewards, st.integers(-3, 3)), min_size=1, max_size=30)
quickly = settings(max_examples=50, deadline=None)


def by_loop(
    rewards: np.ndarray, group: np.ndarray, eps: float = 1e-6, scale_by_std: bool = True
) -> np.ndarray:
    """RESRL, step 7, one response after the other."""
    advantages = np.zeros(len(rewards))
    for index, label in enumerate(group):
        mates = rewards[group == label]
        if len(mates) < 2 or np.all(mates == mates[0]):
            continue
        centred = rewards[index] - mates.mean()
        advantages[index] = centred / (mates.std(ddof=1) + eps) if scale_by_std else centred
    return advantages


def tensors(labelled: list[tuple[float, int]]) -> tuple[torch.Tensor, torch.Tensor]:
    rewards, group = zip(*labelled, strict=True)
    return torch.tensor(rewards, dtype=torch.float64), torch.tensor(group)


@quickly
@given(labelled_rewards, st.sampled_from([1e-6, 1e-4, 0.5]), st.booleans())
def test_group_normalised_equals_a_loop_over_responses(labelled, eps, scale_by_std) -> None:
    rewards, group = tensors(labelled)
    ours = group_normalised(rewards, group, eps=eps, scale_by_std=scale_by_std)
    theirs = by_loop(rewards.numpy(), group.numpy(), eps, scale_by_std)
    np.testing.assert_allclose(ours.numpy(), theirs, rtol=ROUNDING, atol=ROUNDING)


@quickly
@given(labelled_rewards, st.randoms(use_true_random=False))
def test_group_normalised_ignores_the_order_of_responses(labelled, random) -> None:
    rewards, group = tensors(labelled)
    order = list(range(len(labelled)))
    random.shuffle(order)
    # Sums in another order: equal up to rounding only.
    torch.testing.assert_close(
        group_normalised(rewards[order], group[order]),
        group_normalised(rewards, group)[order],
        rtol=ROUNDING,
        atol=ROUNDING,
    )


@quickly
@given(labelled_rewards)
def test_group_normalised_takes_any_group_numbers(labelled) -> None:
    rewards, group = tensors(labelled)
    assert torch.equal(
        group_normalised(rewards, group), group_normalised(rewards, 1000 + 7 * group)
    )


def test_group_normalised_of_a_lone_response_is_exactly_0() -> None:
    advantages = group_normalised(torch.tensor([0.3, 1.0, 0.0]), torch.tensor([5, 2, 2]))
    assert advantages[0] == 0
    assert advantages[1] > 0 > advantages[2]


@pytest.mark.parametrize("scale_by_std", [True, False])
@pytest.mark.parametrize("eps", [0.0, 1e-6])
def test_group_normalised_of_equal_rewards_is_exactly_0(eps, scale_by_std) -> None:
    rewards = torch.full((3,), 0.1, dtype=torch.float64)
    assert rewards.sum() / 3 != 0.1  # what a subtraction alone would leave behind
    advantages = group_normalised(
        rewards, torch.zeros(3, dtype=torch.int64), eps=eps, scale_by_std=scale_by_std
    )
    assert torch.equal(advantages, torch.zeros(3, dtype=torch.float64))


def test_group_normalised_equals_a_hand_computation() -> None:
    # mean 1/2, unbiased variance 1/3
    advantages = group_normalised(torch.tensor([1, 0, 0, 1]), torch.tensor([0, 0, 0, 0]))
    size = 0.5 / (3**-0.5 + 1e-6)
    expected = torch.tensor([size, -size, -size, size], dtype=torch.float64)
    torch.testing.assert_close(advantages, expected, rtol=1e-15, atol=0)


def test_group_normalised_computes_in_float64() -> None:
    rewards = torch.tensor([1.0, 0.0, 0.7], dtype=torch.bfloat16)
    group = torch.zeros(3, dtype=torch.int64)
    assert torch.equal(group_normalised(rewards, group), group_normalised(rewards.double(), group))
    assert group_normalised(rewards, group).dtype == torch.float64


def test_group_normalised_of_no_responses_is_empty() -> None:
    empty = group_normalised(torch.zeros(0), torch.zeros(0, dtype=torch.int64))
    assert empty.shape == (0,)


@pytest.mark.parametrize(
    ("rewards", "group", "message"),
    [
        ([1.0, 0.0], [0], r"rewards of 2 responses but groups of 1"),
        ([[1.0, 0.0]], [[0, 0]], r"rewards has shape \[1, 2\].*one number per response"),
        ([1.0, float("nan")], [0, 0], r"rewards\[1\] is nan.*finite"),
        ([1.0, float("-inf")], [0, 0], r"rewards\[1\] is -inf.*finite"),
        ([1.0, 0.0], [0.0, 0.0], r"group has dtype torch.float32.*int64"),
    ],
)
def test_group_normalised_names_unusable_rewards(rewards, group, message) -> None:
    with pytest.raises(ValueError, match=message):
        group_normalised(torch.tensor(rewards), torch.tensor(group))


def test_group_normalised_refuses_a_negative_eps() -> None:
    with pytest.raises(ValueError, match=r"eps is -1e-06"):
        group_normalised(torch.tensor([1.0, 0.0]), torch.tensor([0, 0]), eps=-1e-6)


def test_is_correct_is_a_score_above_zero() -> None:
    scores = torch.tensor([0.7, 0.0, -1.0, 1e-9, 3.0])
    assert is_correct(scores).tolist() == [True, False, False, True, True]
    advantages = outcome_advantages(scores, correct=0.1, incorrect=-1.0)
    assert advantages.tolist() == [0.1, -1.0, -1.0, 0.1, 0.1]
    assert advantages.dtype == torch.float64


def test_is_correct_refuses_a_score_that_is_not_a_number() -> None:
    with pytest.raises(ValueError, match=r"scores\[0\] is nan"):
        is_correct(torch.tensor([float("nan"), 1.0]))


@pytest.mark.parametrize("size", [1e300, 1.7e308, 1e160, 1e-150, 1e-300])
def test_group_normalised_ignores_the_scale_of_rewards(size: float) -> None:
    rewards, group = torch.tensor([1.0, 0.0, 0.5, 0.25, -1.0, 1.0]).double(), torch.tensor([0] * 6)
    expected = by_loop(rewards.numpy(), group.numpy(), eps=0.0)
    ours = group_normalised(rewards * size, group, eps=0.0)
    np.testing.assert_allclose(ours.numpy(), expected, rtol=ROUNDING)
    assert torch.equal(
        group_normalised(rewards * 2.0**900, group, eps=0.0),
        group_normalised(rewards, group, eps=0.0),
    )


def test_group_normalised_keeps_groups_of_any_scale_apart() -> None:
    rewards = torch.tensor([1e300, -1e300, 1.0, 0.0], dtype=torch.float64)
    group = torch.tensor([0, 0, 1, 1])
    half = 1 / np.sqrt(2)
    ours = group_normalised(rewards, group, eps=0.0)
    np.testing.assert_allclose(ours.numpy(), [half, -half, half, -half], rtol=ROUNDING)


def test_group_normalised_refuses_advantages_beyond_float32() -> None:
    rewards, group = torch.tensor([1e300, 0.0], dtype=torch.float64), torch.tensor([0, 0])
    with pytest.raises(ValueError, match=r"a reward is 1e\+300.*scale the rewards down"):
        group_normalised(rewards, group, scale_by_std=False)
