"""Which sequences share a packed micro-batch."""

from __future__ import annotations

from collections.abc import Sequence


def pack(lengths: Sequence[int], budget: int) -> list[tuple[int, ...]]:
    """Fills bins: the longest sequence first, each into the first bin with room for it.

    First-fit decreasing; it needs at most 11/9 of the fewest possible bins, and one more. The same
    lengths always give the same bins.

    Args:
        lengths: Tokens of each sequence.
        budget: Tokens of a bin.

    Returns:
        Indices of the sequences of each bin, ascending, in the order of their first ones.

    Raises:
        ValueError: A sequence is longer than the budget.
    """
    bins: list[list[int]] = []
    room: list[int] = []
    for index in sorted(range(len(lengths)), key=lambda index: (-lengths[index], index)):
        length = lengths[index]
        if length > budget:
            raise ValueError(f"sequence {index} has {length} tokens, the budget is {budget}")
        place = next((number for number, left in enumerate(room) if left >= length), len(bins))
        if place == len(bins):
            bins.append([])
            room.append(budget)
        bins[place].append(index)
        room[place] -= length
    return sorted(tuple(sorted(each)) for each in bins)
