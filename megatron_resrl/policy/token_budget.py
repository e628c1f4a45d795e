"""Which sequences share a micro-batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from megatron_resrl.policy.batches import TokenBatch, fed_sequences
from megatron_resrl.policy.prefixes import FedLength


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
    shared: bool = False
    """What sequences of one prompt have in common at their beginning stands in a micro-batch once,
    which is packed then."""

    def lengths_of(self, batch: TokenBatch) -> list[FedLength]:
        """[B] what the model is fed of each sequence of a batch."""
        return fed_sequences(batch, shared=self.shared, multiple=self.multiple)

    def positions(self, lengths: Sequence[FedLength]) -> int:
        """Positions of a micro-batch of sequences of these lengths."""
        return self._part(lengths).positions(self.packed)

    def allows(self, lengths: Sequence[FedLength]) -> bool:
        """Whether sequences of these lengths fit into a micro-batch."""
        return self._allows(self._part(lengths))

    def fed(self, parts: Sequence[Sequence[int]], lengths: Sequence[FedLength]) -> Fed:
        """What the model is fed in the micro-batches of `cut`."""
        own = [[lengths[index] for index in part] for part in parts]
        whole = sum(length.tokens for part in own for length in part)
        saved = sum(self._part(part).saved for part in own)
        return Fed(sum(map(self.positions, own)), whole - saved, saved)

    def _part(self, lengths: Sequence[FedLength]) -> _Part:
        return _Part().with_lengths(lengths, self.multiple)

    def _allows(self, part: _Part) -> bool:
        fits = self.tokens is None or part.positions(self.packed) <= self.tokens
        return fits and part.sequences <= self.sequences

    def cut(
        self, together: Sequence[Sequence[int]], lengths: Sequence[FedLength]
    ) -> list[tuple[int, ...]]:
        """Cuts sequences into micro-batches.

        Without a limit on tokens neighbours share a micro-batch. With one they are packed
        first-fit decreasing, which needs at most 11/9 of the fewest possible micro-batches and one
        more where sequences are packed. Sequences that share a prefix are packed as one as far as
        they fit, so that few micro-batches repeat it. The same lengths always give the same
        micro-batches.

        Args:
            together: Sequences, by their index, that must share a micro-batch; each fits alone.
            lengths: Of every sequence, as the model is fed it.

        Returns:
            Indices of the sequences of each micro-batch.
        """
        if self.tokens is None:
            return self.cut_in_order(together, lengths)

        bundles = self._bundles(together, lengths)
        own = [[lengths[index] for index in rows] for rows in bundles]

        def size(number: int) -> tuple[int, int]:
            part = self._part(own[number])
            return -(part.total if self.packed else part.longest), number

        parts: list[list[int]] = []
        sizes: list[_Part] = []
        for number in sorted(range(len(bundles)), key=size):
            grown = (each.with_lengths(own[number], self.multiple) for each in sizes)
            place = next((n for n, each in enumerate(grown) if self._allows(each)), len(parts))
            if place == len(parts):
                parts.append([])
                sizes.append(_Part())
            parts[place] += bundles[number]
            sizes[place] = sizes[place].with_lengths(own[number], self.multiple)
        return [tuple(part) for part in parts]

    def _bundles(
        self, together: Sequence[Sequence[int]], lengths: Sequence[FedLength]
    ) -> list[list[int]]:
        """Sequences that share a prefix, as many as fit into a micro-batch; all others as given."""
        bundles: list[list[int]] = []
        sizes: list[_Part] = []
        newest: dict[int, int] = {}
        for rows in together:
            own = [lengths[index] for index in rows]
            prefixes = {length.prefix for length in own if length.shared}
            number = newest.get(min(prefixes)) if len(prefixes) == 1 else None
            if number is not None:
                grown = sizes[number].with_lengths(own, self.multiple)
                if self._allows(grown):
                    bundles[number] += rows
                    sizes[number] = grown
                    continue
            newest |= dict.fromkeys(prefixes, len(bundles))
            bundles.append(list(rows))
            sizes.append(self._part(own))
        return bundles

    def cut_in_order(
        self, together: Sequence[Sequence[int]], lengths: Sequence[FedLength]
    ) -> list[tuple[int, ...]]:
        """Cuts sequences into micro-batches without changing their order; see `cut`."""
        parts: list[list[int]] = []
        last = _Part()
        for rows in together:
            own = [lengths[index] for index in rows]
            grown = last.with_lengths(own, self.multiple)
            if not parts or not self._allows(grown):
                parts.append([])
                grown = self._part(own)
            parts[-1] += rows
            last = grown
        return [tuple(part) for part in parts]


class Fed(NamedTuple):
    """What a model is fed in micro-batches."""

    positions: int
    """Padding included."""
    tokens: int
    shared: int = 0
    """Tokens that it is not fed, because they stand in a prefix that was fed already."""


class _Part(NamedTuple):
    """The size of a micro-batch."""

    sequences: int = 0
    total: int = 0
    """Positions of all sequences behind each other."""
    longest: int = 0
    saved: int = 0
    """Tokens that would be there again without shared prefixes."""
    prefixes: frozenset[int] = frozenset()
    """Numbers of those that are there."""

    def with_lengths(self, lengths: Sequence[FedLength], multiple: int) -> _Part:
        """With further sequences of these lengths."""
        sequences, total, longest, saved, before = self
        prefixes = set(before)
        for length in lengths:
            padded = length.padded(multiple)
            known = length.shared if length.prefix in prefixes else 0
            total += padded - known
            saved += known
            longest = max(longest, padded)
            if length.shared:
                prefixes.add(length.prefix)
        return _Part(sequences + len(lengths), total, longest, saved, frozenset(prefixes))

    def positions(self, packed: bool) -> int:
        """Of the model's input."""
        return self.total if packed or self.saved else self.sequences * self.longest


def pack(lengths: Sequence[FedLength], budget: int) -> list[tuple[int, ...]]:
    """Fills packed micro-batches of any number of sequences, see `MicroBatchLimit.cut`.

    Args:
        lengths: Of each sequence, as the model is fed it.
        budget: Tokens of a micro-batch.

    Returns:
        Indices of the sequences of each micro-batch, ascending, in the order of their first ones.

    Raises:
        ValueError: A sequence is longer than the budget.
    """
    for index, length in enumerate(lengths):
        if length.tokens > budget:
            raise ValueError(f"sequence {index} has {length.tokens} tokens, the budget is {budget}")
    limit = MicroBatchLimit(len(lengths), budget, packed=True)
    parts = limit.cut([(index,) for index in range(len(lengths))], lengths)
    return sorted(tuple(sorted(part)) for part in parts)
