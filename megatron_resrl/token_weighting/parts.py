"""Micro-batches of an update that observes the states which its own weights are made of."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from megatron_resrl.policy.batches import parts_in_order
from megatron_resrl.rollout.batch import TrainingBatch
from megatron_resrl.subspace import GroupPlan


def parts_of_plan(
    plan: GroupPlan, micro_batch_size: int, first: Collection[int]
) -> list[tuple[int, ...]]:
    """Cuts a plan's responses into micro-batches that keep the negatives of a group together.

    Args:
        plan: In whose order the responses stay.
        micro_batch_size: Most responses of a micro-batch; no other group has more negatives.
        first: Ids of the groups whose responses are left out.

    Returns:
        Responses of each micro-batch.
    """
    parts: list[list[int]] = []
    for together in _inseparable(plan, first):
        if not parts or len(parts[-1]) + len(together) > micro_batch_size:
            parts.append([])
        parts[-1] += together
    return [tuple(part) for part in parts]


def parts_of_batch(
    batch: TrainingBatch, micro_batch_size: int, first: Collection[int]
) -> tuple[list[int], list[tuple[int, ...]]]:
    """Cuts a batch whose responses may pass in any order.

    Args:
        batch: Of this replica.
        micro_batch_size: Most responses of a micro-batch.
        first: Ids of the groups that are scored first.

    Returns:
        Rows that are scored first, and of each micro-batch of the others.
    """
    scored: list[int] = []
    later: list[int] = []
    for row, group in enumerate(batch.group_ids.tolist()):
        (scored if group in first else later).append(row)
    return scored, parts_in_order(later, micro_batch_size)


def _inseparable(plan: GroupPlan, first: Collection[int]) -> list[Sequence[int]]:
    """Single positives, and the negatives of each group, in the plan's order."""
    found: list[Sequence[int]] = []
    for window in plan.windows:
        groups = [group for group in window.groups if plan.group_ids[group] not in first]
        found += [(row,) for row in window.positives if int(plan.group_B[row]) in groups]
        negatives: dict[int, list[int]] = {group: [] for group in groups}
        for row in window.negatives:
            if (group := int(plan.group_B[row])) in negatives:
                negatives[group].append(row)
        found += [rows for rows in negatives.values() if rows]
    return found
