"""Which segments a packed row is made of, and what is in them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from megatron_resrl.policy.prefixes import FedLength
from megatron_resrl.policy.segments import Segments


class Place(NamedTuple):
    """Where a segment of a sequence lies."""

    row: int
    """Of the token batch."""
    line: int
    """Of the micro-batch."""
    start: int
    """First position in the line, of all context-parallel ranks' positions."""
    first: int
    """First position in the sequence."""
    length: int
    """Positions, padding included."""


class PackedRow(NamedTuple):
    """Which segments stand behind each other, and what is in them."""

    segments: Segments
    places: list[Place]

    @property
    def width(self) -> int:
        """Positions."""
        return sum(self.segments.lengths)


def packed_row(part: Sequence[int], fed: Sequence[FedLength], multiple: int) -> PackedRow:
    """Sequences behind each other, a prefix that several share in front of the first of them."""
    members = Counter(fed[row].prefix for row in part)
    lengths: list[int] = []
    prefixes: list[int | None] = []
    places: list[Place] = []
    known: dict[int, int] = {}
    starts = [0]

    def append(length: int, prefix: int | None) -> int:
        lengths.append(length)
        prefixes.append(prefix)
        starts.append(starts[-1] + length)
        return len(lengths) - 1

    for row in part:
        length = fed[row]
        prefix, shared = None, 0
        if length.shared and members[length.prefix] > 1:
            shared = length.shared
            if length.prefix not in known:
                known[length.prefix] = append(shared, None)
            prefix = known[length.prefix]
            places.append(Place(row, 0, starts[prefix], 0, shared))
        own = length.padded(multiple) - shared
        places.append(Place(row, 0, starts[append(own, prefix)], shared, own))
    return PackedRow(Segments(tuple(lengths), tuple(prefixes)), places)
