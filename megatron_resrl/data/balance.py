"""Deals whole groups to data-parallel ranks so that each gets about as many tokens."""

from __future__ import annotations

from collections.abc import Sequence


def deal_groups(tokens_per_group: Sequence[int], ranks: int) -> list[list[int]]:
    """Assigns groups to ranks: longest first, each to the rank with the fewest tokens so far.

    Every rank gets the same number of groups, which must divide evenly, so that micro-batch
    counts stay comparable.

    Args:
        tokens_per_group: Tokens of each group.
        ranks: Number of data-parallel ranks.

    Returns:
        Group indices of each rank, ascending.

    Raises:
        ValueError: The groups do not divide evenly.
    """
    if len(tokens_per_group) % ranks:
        raise ValueError(
            f"{len(tokens_per_group)} groups cannot be dealt evenly to {ranks} data-parallel ranks"
        )
    per_rank = len(tokens_per_group) // ranks
    hands: list[list[int]] = [[] for _ in range(ranks)]
    load = [0] * ranks
    longest_first = sorted(
        range(len(tokens_per_group)), key=lambda group: (-tokens_per_group[group], group)
    )
    for group in longest_first:
        open_ranks = [rank for rank in range(ranks) if len(hands[rank]) < per_rank]
        rank = min(open_ranks, key=lambda rank: (load[rank], rank))
        hands[rank].append(group)
        load[rank] += tokens_per_group[group]
    return [sorted(hand) for hand in hands]
