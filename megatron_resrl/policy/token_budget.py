"""Which sequences share a micro-batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple


@dataclass(frozen=True)
class MicroBatchLimit:
    """How large a micro-batch may be."""

    sequences: int
    """Most sequences."""
    tokens: int | None = None
    """Most positions that the model is fed, padding included; None: any number."""
    packed: bool = False
    """Sequences stand behind each other, so that none is padded to the longest."""
    multiple: int = 1
    """Every sequence is padded to a multiple of it."""

    def positions(self, lengths: Sequence[int]) -> int:
        """Positions of a micro-batch of sequences of these lengths."""
        return _Part().with_lengths(self._padded(lengths)).positions(self.packed)

    def allows(self, lengths: Sequence[int]) -> bool:
        """Whether sequences of these lengths fit into a micro-batch."""
        return self._allows(_Part().with_lengths(self._padded(lengths)))

    def fed(self, parts: Sequence[Sequence[int]], lengths: Sequence[int]) -> Fed:
        """What the model is fed in the micro-batches of `cut`."""
        own = [[lengths[index] for index in part] for part in parts]
        return Fed(sum(map(self.positions, own)), sum(map(sum, own)))

    def _padded(self, lengths: Sequence[int]) -> list[int]:
        return [-(-length // self.multiple) * self.multiple for length in lengths]

    def _allows(self, part: _Part) -> bool:
        fits = self.tokens is None or part.positions(self.packed) <= self.tokens
        return fits and part.sequences <= self.sequences

    def cut(
        self, together: Sequence[Sequence[int]], lengths: Sequence[int]
    ) -> list[tuple[int, ...]]:
        """Cuts sequences into micro-batches.

        Without a limit on tokens neighbours share a micro-batch. With one they are packed
        first-fit decreasing, which needs at most 11/9 of the fewest possible micro-batches and one
        more where sequences are packed. The same lengths always give the same micro-batches.

        Args:
            together: Sequences, by their index, that must share a micro-batch; each fits alone.
            lengths: Of every sequence, as the model is fed it.

        Returns:
            Indices of the sequences of each micro-batch.
        """
        if self.tokens is None:
            return self.cut_in_order(together, lengths)

        padded = self._padded(lengths)

        def size(number: int) -> tuple[int, int]:
            own = [padded[index] for index in together[number]]
            return -(sum(own) if self.packed else max(own, default=0)), number

        parts: list[list[int]] = []
        sizes: list[_Part] = []
        for number in sorted(range(len(together)), key=size):
            own = [padded[index] for index in together[number]]
            grown = (each.with_lengths(own) for each in sizes)
            place = next((n for n, each in enumerate(grown) if self._allows(each)), len(parts))
            if place == len(parts):
                parts.append([])
                sizes.append(_Part())
            parts[place] += together[number]
            sizes[place] = sizes[place].with_lengths(own)
        return [tuple(part) for part in parts]

    def cut_in_order(
        self, together: Sequence[Sequence[int]], lengths: Sequence[int]
    ) -> list[tuple[int, ...]]:
        """Cuts sequences into micro-batches without changing their order; see `cut`."""
        parts: list[list[int]] = []
        last, padded = _Part(), self._padded(lengths)
        for rows in together:
            own = [padded[index] for index in rows]
            if not parts or not self._allows(last.with_lengths(own)):
                parts.append([])
                last = _Part()
            parts[-1] += rows
            last = last.with_lengths(own)
        return [tuple(part) for part in parts]


class Fed(NamedTuple):
    """What a model is fed in micro-batches."""

    positions: int
    """Padding included."""
    tokens: int


class _Part(NamedTuple):
    """The size of a micro-batch."""

    sequences: int = 0
    total: int = 0
    longest: int = 0

    def with_lengths(self, lengths: Sequence[int]) -> _Part:
        """With further sequences of these lengths."""
        longest = max(self.longest, max(lengths, default=0))
        return _Part(self.sequences + len(lengths), self.total + sum(lengths), longest)

    def positions(self, packed: bool) -> int:
        """Of the model's input."""
        return self.total if packed else self.sequences * self.longest


def pack(lengths: Sequence[int], budget: int) -> list[tuple[int, ...]]:
    """Fills packed micro-batches of any number of sequences, see `MicroBatchLimit.cut`.

    Args:
        lengths: Tokens of each sequence.
        budget: Tokens of a micro-batch.

    Returns:
        Indices of the sequences of each micro-batch, ascending, in the order of their first ones.

    Raises:
        ValueError: A sequence is longer than the budget.
    """
    for index, length in enumerate(lengths):
        if length > budget:
            raise ValueError(f"sequence {index} has {length} tokens, the budget is {budget}")
    limit = MicroBatchLimit(len(lengths), budget, packed=True)
    parts = limit.cut([(index,) for index in range(len(lengths))], lengths)
    return sorted(tuple(sorted(part)) for part in parts)
