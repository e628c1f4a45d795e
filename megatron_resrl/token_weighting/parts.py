"""Micro-batches of an update that observes the states which its own weights are made of."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from megatron_resrl.policy.token_budget import MicroBatchLimit
from megatron_resrl.rollout.batch import TrainingBatch
from megatron_resrl.subspace import GroupPlan, Window


def parts_of_plan(
    plan: GroupPlan, batch: TrainingBatch, limit: MicroBatchLimit, first: Collection[int]
) -> list[tuple[int, ...]]:
    """Cuts a plan's responses into micro-batches that keep the negatives of a group together.

    Of a window positives come before negatives. Without a limit on tokens the order is the plan's.

    Args:
        plan: Which groups share a window.
        batch: This replica's responses.
        limit: Of a micro-batch; the negatives of no other group are above it.
        first: Ids of the groups whose responses are left out.

    Returns:
        Responses of each micro-batch.
    """
    lengths = limit.lengths_of(batch)
    kinds = [kind for window in plan.windows for kind in _inseparable(plan, window, first)]
    if limit.tokens is None:
        return limit.cut_in_order([rows for kind in kinds for rows in kind], lengths)
    return [part for kind in kinds for part in limit.cut(kind, lengths)]


def parts_of_batch(
    batch: TrainingBatch, limit: MicroBatchLimit, first: Collection[int]
) -> tuple[list[int], list[tuple[int, ...]]]:
    """Cuts a batch whose responses may pass in any order.

    Args:
        batch: This replica's responses.
        limit: Of a micro-batch.
        first: Ids of the groups that are scored first.

    Returns:
        Rows that are scored first, and of each micro-batch of the others.
    """
    scored: list[int] = []
    later: list[int] = []
    for row, group in enumerate(batch.group_ids.tolist()):
        (scored if group in first else later).append(row)
    return scored, limit.cut([(row,) for row in later], limit.lengths_of(batch))


def _inseparable(
    plan: GroupPlan, window: Window, first: Collection[int]
) -> tuple[list[Sequence[int]], list[Sequence[int]]]:
    """Single positives of a window, and the negatives of each of its groups."""
    groups = [group for group in window.groups if plan.group_ids[group] not in first]
    positives = [(row,) for row in window.positives if int(plan.group_B[row]) in groups]
    negatives: dict[int, list[int]] = {group: [] for group in groups}
    for row in window.negatives:
        if (group := int(plan.group_B[row])) in negatives:
            negatives[group].append(row)
    return list(positives), [rows for rows in negatives.values() if rows]
