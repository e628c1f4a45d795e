"""Deals whole groups to data-parallel ranks so that each gets about as much."""

from __future__ import annotations

from collections.abc import Sequence


def deal_groups(cost_per_group: Sequence[float], ranks: int) -> list[list[int]]:
    """Assigns groups to ranks: costliest first, each to the rank with the least so far.

    Every rank gets the same number of groups, which must divide evenly, so that micro-batch
    counts stay comparable.

    Args:
        cost_per_group: Of each group, e.g. its tokens.
        ranks: Number of data-parallel ranks.

    Returns:
        Group indices of each rank, ascending.

    Raises:
        ValueError: The groups do not divide evenly.
    """
    if len(cost_per_group) % ranks:
        raise ValueError(
            f"{len(cost_per_group)} groups cannot be dealt evenly to {ranks} data-parallel ranks"
        )
    per_rank = len(cost_per_group) // ranks
    hands: list[list[int]] = [[] for _ in range(ranks)]
    load = [0.0] * ranks
    costliest_first = sorted(
        range(len(cost_per_group)), key=lambda group: (-cost_per_group[group], group)
    )
    for group in costliest_first:
        open_ranks = [rank for rank in range(ranks) if len(hands[rank]) < per_rank]
        rank = min(open_ranks, key=lambda rank: (load[rank], rank))
        hands[rank].append(group)
        load[rank] += cost_per_group[group]
    return [sorted(hand) for hand in hands]
