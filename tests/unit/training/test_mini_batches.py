"""Which groups share a mini-batch."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from one_step import step_recipe, take_step
from tiny_rollouts import rollouts
from torch import Tensor

from megatron_resrl.rollout.worker import build_policy
from megatron_resrl.training.sharing import balanced_mini_batches
from megatron_resrl.weights.hugging_face import export_weights


def batch_of(correct: list[int], size: int = 4) -> tuple[Tensor, Tensor, Tensor]:
    """Group ids, positive and has_loss of groups with so many correct responses; as with GRPO, a
    group with one side only has no loss."""
    groups = torch.arange(len(correct)).repeat_interleave(size)
    positive = torch.cat([torch.arange(size) < count for count in correct])
    mixed = torch.tensor([0 < count < size for count in correct])
    return groups, positive, mixed.repeat_interleave(size)


@pytest.mark.parametrize(
    ("correct", "count", "expected"),
    [
        # Surpluses of 2, 2, -2 and -2.
        ([3, 3, 1, 1], 2, [[0, 2], [1, 3]]),
        # Groups of one side only have no signal to cancel, and count nothing.
        ([3, 4, 0, 1], 2, [[0, 3], [1, 2]]),
        ([1, 2, 3], 1, [[0, 1, 2]]),
        # A group that is left over is in none.
        ([3, 1, 3, 1, 2], 2, [[0, 1], [2, 3]]),
    ],
)
def test_balanced_mini_batches_even_out_both_signs(correct, count, expected) -> None:
    groups, positive, has_loss = batch_of(correct)
    found = balanced_mini_batches(groups, positive, has_loss, count)
    rows = [[4 * group + place for group in part for place in range(4)] for part in expected]
    assert found == rows


def test_balanced_mini_batches_are_whole_groups_in_equal_numbers() -> None:
    generator = torch.Generator().manual_seed(3)
    spreads = {"balanced": 0, "as sampled": 0}
    for _ in range(50):
        correct = torch.randint(0, 9, (16,), generator=generator).tolist()
        groups, positive, has_loss = batch_of(correct, 8)
        found = balanced_mini_batches(groups, positive, has_loss, 4)
        assert sorted(row for part in found for row in part) == list(range(len(groups)))
        sampled = [list(range(32 * number, 32 * number + 32)) for number in range(4)]
        for name, parts in (("balanced", found), ("as sampled", sampled)):
            assert all(
                groups[part].bincount(minlength=16).unique().tolist() == [0, 8] for part in parts
            )
            surplus = [int((torch.where(positive, 1, -1) * has_loss)[part].sum()) for part in parts]
            spreads[name] += max(surplus) - min(surplus)
    assert spreads["balanced"] < 0.2 * spreads["as sampled"]


@pytest.mark.setting("algorithm.mini_batches")
def test_balanced_updates_are_those_of_reordered_groups(qwen3_on_one_rank: Path) -> None:
    """The surpluses are 0, 0, none and -2: the groups of both updates are 0 and 2, 1 and 3."""
    samples, _ = rollouts()
    reordered = [
        replace(samples[4 * group + place], group=number)
        for number, group in enumerate((0, 2, 1, 3))
        for place in range(4)
    ]

    def after(composition: str, taken: list, updates: int = 2) -> tuple[Tensor, float]:
        recipe = step_recipe(qwen3_on_one_rank)
        algorithm = replace(
            recipe.algorithm, name="grpo", updates_per_step=updates, mini_batches=composition
        )
        policy = build_policy(replace(recipe, algorithm=algorithm))
        metrics = take_step(policy, replace(recipe, algorithm=algorithm), taken).metrics
        weights = dict(export_weights(policy.modules, policy.hf_config)).values()
        return torch.cat([each.flatten() for each in weights]), metrics["loss"]

    balanced, _ = after("balanced", samples)
    torch.testing.assert_close(balanced, after("as_sampled", reordered)[0], rtol=0, atol=1e-6)
    assert (balanced - after("as_sampled", samples)[0]).abs().max() > 1e-4
    # One update has all groups, and the same loss.
    assert after("balanced", samples, 1)[1] == after("as_sampled", samples, 1)[1]
