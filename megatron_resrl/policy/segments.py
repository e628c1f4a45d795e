"""What packed rows consist of, and which tokens attend to which.

A packed row is cut into segments: sequences, or where several sequences begin alike, their shared
prefix once and what follows it in each. Every kind of attention reads the same description.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor


def zigzag_positions(length: int, rank: int, size: int) -> Tensor:
    """Positions of a segment that a context-parallel rank holds, ascending.

    Of 2 * size equal pieces rank r holds pieces r and 2 * size - 1 - r, so that all ranks have as
    much causal attention to compute (Megatron's and Transformer Engine's order).

    Args:
        length: Of the whole segment; a multiple of 2 * size if size > 1.
        rank: This rank.
        size: Context-parallel ranks.

    Returns:
        [length / size] int64.
    """
    if size == 1:
        return torch.arange(length)
    piece = torch.arange(length // (2 * size))
    return torch.cat([rank * len(piece) + piece, (2 * size - 1 - rank) * len(piece) + piece])


class Piece(NamedTuple):
    """Consecutive queries of a rank. The last of them sees all keys, the one before it one less."""

    queries: int
    keys: tuple[tuple[int, int], ...]
    """(segment, how many of its first keys), in the order of their positions."""

    @property
    def num_keys(self) -> int:
        """Keys that the last query sees."""
        return sum(count for _, count in self.keys)

    def keys_of(self, segments: Sequence[Tensor]) -> list[Tensor]:
        """The keys, or values, in parts.

        Args:
            segments: Of the whole row: [length, ...] of each segment.
        """
        parts = ((segments[number], count) for number, count in self.keys)
        return [part if count == len(part) else part[:count] for part, count in parts]


@dataclass(frozen=True)
class Segments:
    """The segments of a packed row, in order."""

    lengths: tuple[int, ...]
    """Of the whole segments, padding included; the last may consist of nothing else."""
    prefixes: tuple[int | None, ...]
    """The segment before it whose tokens precede its own; None: it begins a sequence."""

    @classmethod
    def apart(cls, lengths: Sequence[int]) -> Segments:
        """Whole sequences of these lengths."""
        return cls(tuple(lengths), (None,) * len(lengths))

    @property
    def shared(self) -> bool:
        """Whether there is a prefix."""
        return any(prefix is not None for prefix in self.prefixes)

    def first_position(self, number: int) -> int:
        """Of a segment, in its sequences."""
        prefix = self.prefixes[number]
        return 0 if prefix is None else self.lengths[prefix]

    def pieces(self, rank: int = 0, size: int = 1) -> tuple[Piece, ...]:
        """What the queries of a context-parallel rank see, in the order of its positions."""
        found = []
        for number, (length, prefix) in enumerate(zip(self.lengths, self.prefixes, strict=True)):
            before = () if prefix is None else ((prefix, self.lengths[prefix]),)
            for queries, end in _pieces(length, rank, size):
                found.append(Piece(queries, (*before, (number, end))))
        return tuple(found)


def _pieces(length: int, rank: int, size: int) -> list[tuple[int, int]]:
    """(queries, end in the segment) of each piece of `zigzag_positions`."""
    if size == 1:
        return [(length, length)]
    piece = length // (2 * size)
    return [(piece, (rank + 1) * piece), (piece, (2 * size - rank) * piece)]


@functools.lru_cache(maxsize=8)
def natural_order(lengths: tuple[int, ...], size: int) -> Tensor:
    """Where each position of the whole segments lies in the ranks' gathered shares, [sum]."""
    starts = [0, *itertools.accumulate(lengths)]
    positions = [
        start + zigzag_positions(length, rank, size)
        for rank in range(size)
        for start, length in zip(starts, lengths, strict=False)
    ]
    return torch.cat(positions).argsort()
