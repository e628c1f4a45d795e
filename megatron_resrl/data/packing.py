"""Micro-batches: padded or packed token matrices, and where their response tokens are."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class TokenSequence:
    """A prompt and one response, as token ids."""

    prompt: tuple[int, ...]
    response: tuple[int, ...]
    response_mask: tuple[bool, ...] | None = None
    """Whether the policy drew each response token; None: all. The others are fed as context and
    are nobody's target."""

    def __len__(self) -> int:
        return len(self.prompt) + len(self.response)


def drawn_mask(sequences: Sequence[TokenSequence], longest: int) -> torch.Tensor:
    """Marks the response tokens that the policy drew: those with a target, a loss, statistics.

    Args:
        sequences: B prompts with their responses.
        longest: T, at least the tokens of the longest response.

    Returns:
        [B, T] bool on the CPU; False beyond a response's end.
    """
    mask_BT = torch.zeros(len(sequences), longest, dtype=torch.bool)
    for row, sequence in zip(mask_BT, sequences, strict=True):
        row[: len(sequence.response)] = _drawn(sequence)
    return mask_BT


def _drawn(sequence: TokenSequence) -> torch.Tensor:
    """[response tokens] bool."""
    if sequence.response_mask is None:
        return torch.ones(len(sequence.response), dtype=torch.bool)
    return torch.tensor(sequence.response_mask, dtype=torch.bool)


@dataclass(frozen=True)
class MicroBatch:
    """Model input. The state at position t - 1 predicts the token at position t.

    Padded, it is a matrix of `b` right-padded sequences; packed, the padded sequences lie behind
    each other in one row (b = 1). The last token of a sequence is predicted, never fed.

    Under context parallelism it is one rank's share: the positions that `zigzag_positions` gives
    it of every sequence, and the `n` response tokens whose predicting state is among them, sequence
    by sequence. `s` counts this rank's positions. Response tokens that the policy did not draw are
    among the tokens, not among the `n`.
    """

    tokens: torch.Tensor
    """[b, s] int64."""
    position_ids: torch.Tensor
    """[b, s] int64: positions in the whole sequence."""
    state_index: torch.Tensor
    """[n] int64: index into the flattened [s * b] states of the one that predicts each token."""
    targets: torch.Tensor
    """[n] int64: the response tokens."""
    sequence_index: torch.Tensor
    """[n] int64: which of the caller's sequences each token belongs to."""
    response_position: torch.Tensor
    """[n] int64: index of the token in its response."""
    sequences: range
    """The caller's sequences in this micro-batch, the same on all context-parallel ranks, also on
    those without a response token of some of them."""
    packed_lengths: tuple[int, ...] | None = None
    """Padded lengths of the whole packed sequences, in order; they may end with one of nothing but
    padding. None: not packed."""
    original: MicroBatch | None = None
    """The same on the CPU, if this one was moved."""

    @property
    def host(self) -> MicroBatch:
        """The same on the CPU, for index computations that must not wait for a device."""
        return self.original or self

    def to(self, device: torch.device) -> MicroBatch:
        """The same on another device."""
        moved = {
            name: value.to(device)
            for name, value in vars(self).items()
            if isinstance(value, torch.Tensor)
        }
        return dataclasses.replace(self, **moved, original=self.host)


_FP8_TOKENS = {"delayed": 16, "tensorwise": 16, "blockwise": 16, "mxfp8": 32}
"""FP8 recipe -> tokens of a rank that its matrix products take a multiple of."""
_BLOCK_TOKENS = 128
"""Of the blockwise recipe's blocks: whole ones only can be gathered in FP8."""


def length_alignment(
    *,
    sequence_parallel_size: int = 1,
    context_parallel_size: int = 1,
    fp8_recipe: str | None = None,
) -> int:
    """What padded lengths must be a multiple of.

    Args:
        sequence_parallel_size: Tensor-parallel ranks that share tokens out; 1 without sequence
            parallelism.
        context_parallel_size: Ranks that share sequences out, two pieces each.
        fp8_recipe: Of Transformer Engine; None: no FP8.
    """
    pieces = 2 if context_parallel_size > 1 else 1
    tokens = 1 if fp8_recipe is None else _FP8_TOKENS[fp8_recipe]
    if fp8_recipe == "blockwise" and sequence_parallel_size > 1:
        tokens = _BLOCK_TOKENS
    return context_parallel_size * math.lcm(pieces, sequence_parallel_size * tokens)


def zigzag_positions(length: int, rank: int, size: int) -> torch.Tensor:
    """Positions of a sequence that a context-parallel rank holds, ascending.

    Of 2 * size equal pieces rank r holds pieces r and 2 * size - 1 - r, so that all ranks have as
    much causal attention to compute (Megatron's and Transformer Engine's order).

    Args:
        length: Of the whole sequence; a multiple of 2 * size if size > 1.
        rank: This rank.
        size: Context-parallel ranks.

    Returns:
        [length / size] int64.
    """
    if size == 1:
        return torch.arange(length)
    piece = torch.arange(length // (2 * size))
    return torch.cat([rank * len(piece) + piece, (2 * size - 1 - rank) * len(piece) + piece])


def make_micro_batches(
    sequences: Sequence[TokenSequence],
    micro_batch_size: int,
    *,
    pad_token_id: int = 0,
    length_multiple: int = 1,
    packed: bool = False,
    uniform: bool = False,
    count_multiple: int = 1,
    context_parallel_rank: int = 0,
    context_parallel_size: int = 1,
) -> list[MicroBatch]:
    """Cuts `sequences`, in order, into micro-batches.

    Args:
        sequences: Of this data-parallel rank; neighbours share a micro-batch. None at all give one
            micro-batch without response tokens.
        micro_batch_size: Sequences per micro-batch; the last may hold fewer.
        pad_token_id: Fills the tail of shorter sequences; any valid id, causal attention keeps it
            from being seen.
        length_multiple: Padded lengths are multiples of it, see `length_alignment`.
        packed: Put the sequences of a micro-batch behind each other, each padded to the multiple
            only, instead of below each other.
        uniform: Give all micro-batches one shape (the interleaved schedule needs it).
        count_multiple: Append micro-batches without response tokens up to a multiple of it.
        context_parallel_rank: Whose share of each sequence to make.
        context_parallel_size: Ranks that share each sequence out.

    Returns:
        Micro-batches on the CPU; their number and shapes do not depend on the rank.

    Raises:
        ValueError: A sequence has no prompt token, so that no state predicts its first token, or a
            mask of another length than its response; or padded lengths could not be shared out
            evenly.
    """
    if context_parallel_size > 1 and length_multiple % (2 * context_parallel_size):
        raise ValueError(
            f"length_multiple is {length_multiple}; {context_parallel_size} context-parallel "
            f"ranks need a multiple of {2 * context_parallel_size}"
        )
    for number, sequence in enumerate(sequences):
        if not sequence.prompt:
            raise ValueError(
                f"sequence {number} has no prompt token; the first token of a response is "
                "predicted from the one before it"
            )
        mask = sequence.response_mask
        if mask is not None and len(mask) != len(sequence.response):
            raise ValueError(
                f"sequence {number} has {len(sequence.response)} response tokens and a mask of "
                f"{len(mask)}; one truth value per token is right"
            )
    count = len(sequences)
    parts = [
        range(start, min(start + micro_batch_size, count))
        for start in range(0, count, micro_batch_size)
    ]
    # At least one: a replica without sequences still takes part in the others' step.
    parts = parts or [range(0)]
    parts += [range(count, count)] * (-len(parts) % count_multiple)

    def padded(sequence: TokenSequence) -> int:
        return math.ceil(max(1, len(sequence) - 1) / length_multiple) * length_multiple

    lengths = [[padded(sequences[number]) for number in part] for part in parts]
    combine = sum if packed else max
    widths = [combine(own) if own else length_multiple for own in lengths]
    if uniform:
        widths = [max(widths)] * len(widths)
    share = _Share(context_parallel_rank, context_parallel_size, pad_token_id)
    if packed:
        return [
            share.packed(sequences, part, own, width)
            for part, own, width in zip(parts, lengths, widths, strict=True)
        ]
    return [
        share.padded(sequences, part, micro_batch_size if uniform else max(1, len(part)), width)
        for part, width in zip(parts, widths, strict=True)
    ]


@dataclass(frozen=True)
class _Share:
    """Makes one context-parallel rank's share of micro-batches."""

    rank: int
    size: int
    pad_token_id: int

    def padded(
        self, sequences: Sequence[TokenSequence], part: range, rows: int, width: int
    ) -> MicroBatch:
        """Sequences `part` below each other, `width` whole positions each."""
        positions = self._positions(width).repeat(rows, 1)
        places = [(number, row, 0, width) for row, number in enumerate(part)]
        return self._fill(sequences, part, positions, places)

    def packed(
        self, sequences: Sequence[TokenSequence], part: range, lengths: list[int], width: int
    ) -> MicroBatch:
        """Sequences `part` behind each other, then padding up to `width` whole positions."""
        padding = width - sum(lengths)
        segments = (*lengths, padding) if padding else tuple(lengths)
        positions = torch.cat([self._positions(length) for length in segments])[None]
        places, start = [], 0
        for number, length in zip(part, lengths, strict=True):
            places.append((number, 0, start, length))
            start += length // self.size
        batch = self._fill(sequences, part, positions, places)
        return dataclasses.replace(batch, packed_lengths=segments)

    def _positions(self, length: int) -> torch.Tensor:
        return zigzag_positions(length, self.rank, self.size)

    def _fill(
        self,
        sequences: Sequence[TokenSequence],
        part: range,
        position_ids: torch.Tensor,
        places: list[tuple[int, int, int, int]],
    ) -> MicroBatch:
        """Puts sequences at (number, row, first local position, whole length)."""
        tokens = torch.full_like(position_ids, self.pad_token_id)
        rows = len(tokens)
        columns: list[list[torch.Tensor]] = [[], [], [], []]
        for number, row, start, length in places:
            prompt, response = sequences[number].prompt, sequences[number].response
            whole = torch.tensor((*prompt, *response), dtype=torch.int64)
            fed = whole[:-1]
            held = self._positions(length)
            real = (held < len(fed)).nonzero().flatten()
            tokens[row, start + real] = fed[held[real]]
            order = held - (len(prompt) - 1)
            predicting = ((order >= 0) & (order < len(response))).nonzero().flatten()
            predicting = predicting[_drawn(sequences[number])[order[predicting]]]
            order = order[predicting]
            columns[0].append((start + predicting) * rows + row)
            columns[1].append(whole[len(prompt) + order])
            columns[2].append(torch.full_like(order, number))
            columns[3].append(order)
        empty = torch.empty(0, dtype=torch.int64)
        state_index, targets, sequence_index, response_position = (
            torch.cat([empty, *column]) for column in columns
        )
        return MicroBatch(
            tokens=tokens,
            position_ids=position_ids,
            state_index=state_index,
            targets=targets,
            sequence_index=sequence_index,
            response_position=response_position,
            sequences=part,
        )
