"""Token batches of prompts with responses, and the micro-batches that the model is fed.

Shapes: B responses, L tokens of the longest prompt with its response, T tokens of the longest
response; in a micro-batch b rows of s positions, n response tokens.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from megatron_resrl.platform.distributed import on_device_together
from megatron_resrl.policy.packed_rows import PackedRow, Place, packed_row
from megatron_resrl.policy.prefixes import FedLength, rows_of_prompts, with_prefixes
from megatron_resrl.policy.segments import Segments, zigzag_positions


@dataclass(frozen=True)
class TokenSequence:
    """A prompt and one response, as token ids."""

    prompt: tuple[int, ...]
    response: tuple[int, ...]
    response_mask: tuple[bool, ...] | None = None
    """Whether the policy generated each response token; None: all."""

    def __len__(self) -> int:
        return len(self.prompt) + len(self.response)


Batch = TypeVar("Batch", bound="TokenBatch")


@dataclass(frozen=True)
class TokenBatch:
    """B prompts with one response each, as tensors whose first dimension is the response."""

    token_ids: Tensor
    """[B, L] int64: prompt, response, padding of 0."""
    prompt_lengths: Tensor
    """[B] int64 tokens of each prompt, at least 1."""
    response_lengths: Tensor
    """[B] int64 tokens of each response, those of an environment included."""
    loss_mask: Tensor
    """[B, T] bool: response tokens that the policy generated. The others, an environment's, are fed
    as context and are no target; False past a response's end."""

    def __len__(self) -> int:
        return len(self.token_ids)

    @classmethod
    def from_sequences(cls, sequences: Sequence[TokenSequence]) -> TokenBatch:
        """Pads sequences into one batch on the CPU.

        Raises:
            ValueError: A sequence has no prompt token, so that no state predicts its first response
                token, or a mask of another length than its response.
        """
        masks = []
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
            masks.append(torch.tensor(mask or [True] * len(sequence.response), dtype=torch.bool))
        rows = [torch.tensor((*one.prompt, *one.response)) for one in sequences]
        return cls(
            token_ids=padded(rows, torch.int64),
            prompt_lengths=torch.tensor([len(one.prompt) for one in sequences], dtype=torch.int64),
            response_lengths=torch.tensor(
                [len(one.response) for one in sequences], dtype=torch.int64
            ),
            loss_mask=padded(masks, torch.bool),
        )

    def rows_together(self, fed: Sequence[int], multiple: int) -> list[list[int]]:
        """Rows that may share a prefix: those of one prompt.

        Args:
            fed: [B] tokens that the model is fed of each.
            multiple: Of padded lengths.
        """
        return rows_of_prompts(self.token_ids, self.prompt_lengths)

    def select(self: Batch, rows: Sequence[int] | Tensor) -> Batch:
        """The batch of these rows, in their order; L and T stay."""
        index = torch.as_tensor(rows, dtype=torch.int64)
        return self._map(lambda value: value[index])

    def to(self: Batch, device: torch.device | str) -> Batch:
        """The same on another device."""
        return self._map(lambda value: value.to(device))

    def _map(self: Batch, change: Callable[[Tensor], Tensor]) -> Batch:
        return dataclasses.replace(
            self, **{name: change(value) for name, value in vars(self).items()}
        )


def padded(rows: Sequence[Tensor], dtype: torch.dtype) -> Tensor:
    """[len(rows), longest row], padded with 0; [0, 0] without rows."""
    if not rows:
        return torch.zeros(0, 0, dtype=dtype)
    return pad_sequence(list(rows), batch_first=True).to(dtype)


@dataclass(frozen=True)
class MicroBatch:
    """Model input. The state at position t - 1 predicts the token at position t.

    Padded, it is a matrix of `b` right-padded sequences; packed, the padded sequences lie behind
    each other in one row (b = 1). What several packed sequences share at their beginning may stand
    there once: then one state predicts a token of each. The last token of a sequence is predicted,
    never fed.

    Under context parallelism it is one rank's share: the positions that `zigzag_positions` gives
    it of every sequence, and the `n` response tokens whose predicting state is among them, sequence
    by sequence. `s` counts this rank's positions. Response tokens that the policy did not generate
    are among the tokens, not among the `n`.
    """

    tokens: Tensor
    """[b, s] int64."""
    position_ids: Tensor
    """[b, s] int64: positions in the whole sequence."""
    state_index: Tensor
    """[n] int64: index into the flattened [s * b] states of the one that predicts each token."""
    targets: Tensor
    """[n] int64: the response tokens."""
    sequence_index: Tensor
    """[n] int64: the row of the token batch that each token belongs to."""
    response_position: Tensor
    """[n] int64: index of the token in its response."""
    sequences: tuple[int, ...]
    """Rows of the token batch in this micro-batch, in order; the same on all context-parallel
    ranks, also on those without a response token of some rows."""
    segments: Segments | None = None
    """Of the whole packed row. None: not packed."""
    padding: Tensor | None = None
    """[b, s] bool: positions that hold no token of a sequence. None: there are none, or the model
    need not know."""
    original: MicroBatch | None = None
    """The same on the CPU, if this one was moved."""

    @property
    def host(self) -> MicroBatch:
        """The same on the CPU, for index computations that must not wait for a device."""
        return self.original or self

    def of_tokens(self, index: Tensor) -> MicroBatch:
        """With some of the n response tokens only; the same input.

        Args:
            index: [m] int64, on the device of the micro-batch.
        """
        names = ("state_index", "targets", "sequence_index", "response_position")
        chosen: dict[str, Any] = {name: getattr(self, name)[index] for name in names}
        return dataclasses.replace(self, **chosen, original=None)

    def states_of_targets(self, hidden: Tensor) -> Tensor:
        """[n, H] of the final states [s, b, H]: those that predict the targets, in their order."""
        rows, length = self.tokens.shape
        index = self.host.state_index
        # Some tokens of a micro-batch may be known on the device alone, which is not asked.
        if not index.is_cuda and len(index) == rows * length:
            in_order = torch.arange(rows * length).view(length, rows)
            if torch.equal(index, in_order.T.flatten()):
                # Every state predicts one, row by row, as in pretraining: nothing to pick.
                return hidden.transpose(0, 1).flatten(0, 1)
        return hidden.flatten(0, 1)[self.state_index]

    def to(self, device: torch.device) -> MicroBatch:
        """The same on another device."""
        fields = {name: each for name, each in vars(self).items() if isinstance(each, Tensor)}
        moved: dict[str, Any] = dict(on_device_together(fields, device))
        return dataclasses.replace(self, **moved, original=self.host)


def fed_lengths(batch: TokenBatch) -> list[int]:
    """[B] positions that the model is fed of each sequence."""
    # The last token of a sequence is predicted, never fed.
    return (batch.prompt_lengths + batch.response_lengths - 1).clamp_min(1).tolist()


def fed_sequences(batch: TokenBatch, *, shared: bool, multiple: int) -> list[FedLength]:
    """[B] what the model is fed of each sequence.

    Args:
        batch: On the CPU.
        shared: What sequences have in common at their beginning may be fed once.
        multiple: Of padded lengths.
    """
    lengths = fed_lengths(batch)
    if shared:
        groups = batch.rows_together(lengths, multiple)
        return with_prefixes(batch.token_ids, groups, lengths, multiple)
    return [FedLength(length) for length in lengths]


def parts_in_order(rows: Sequence[int], micro_batch_size: int) -> list[tuple[int, ...]]:
    """Neighbours share a micro-batch; the last may hold fewer rows."""
    return [
        tuple(rows[start : start + micro_batch_size])
        for start in range(0, len(rows), micro_batch_size)
    ]


def make_micro_batches(
    batch: TokenBatch,
    parts: Sequence[Sequence[int]],
    *,
    length_multiple: int = 1,
    packed: bool = False,
    shared: bool = False,
    uniform: bool = False,
    count_multiple: int = 1,
    context_parallel_rank: int = 0,
    context_parallel_size: int = 1,
) -> list[MicroBatch]:
    """Cuts rows of a batch into micro-batches.

    Args:
        batch: Of this data-parallel rank, on the CPU.
        parts: The rows of each micro-batch, see `parts_in_order`. None at all give one micro-batch
            without response tokens.
        length_multiple: Padded lengths are multiples of it, see `alignment`.
        packed: Put the sequences of a micro-batch behind each other, each padded to the multiple
            only, instead of below each other.
        shared: Feed what sequences of a micro-batch share at their beginning once. A micro-batch in
            which they share something is packed.
        uniform: Give all micro-batches one shape (the interleaved schedule needs it).
        count_multiple: Append micro-batches without response tokens up to a multiple of it.
        context_parallel_rank: Whose share of each sequence to make.
        context_parallel_size: Ranks that share each sequence.

    Returns:
        Micro-batches on the CPU; their number and shapes do not depend on the rank.

    Raises:
        ValueError: Padded lengths could not be shared evenly.
    """
    if context_parallel_size > 1 and length_multiple % (2 * context_parallel_size):
        raise ValueError(
            f"length_multiple is {length_multiple}; {context_parallel_size} context-parallel "
            f"ranks need a multiple of {2 * context_parallel_size}"
        )
    # At least one: a replica without sequences still takes part in the others' step.
    groups = [tuple(part) for part in parts] or [()]
    groups += [()] * (-len(groups) % count_multiple)
    largest = max(1, max(map(len, groups)))

    fed = fed_sequences(batch, shared=shared, multiple=length_multiple)
    rows = [packed_row(part, fed, length_multiple) for part in groups]
    packs = [packed or row.segments.shared for row in rows]
    if uniform:
        packs = [any(packs)] * len(packs)
    widths = [
        row.width if pack else max((fed[each].padded(length_multiple) for each in part), default=0)
        for part, row, pack in zip(groups, rows, packs, strict=True)
    ]
    widths = [width or length_multiple for width in widths]
    if uniform:
        widths = [max(widths)] * len(widths)
    share = _Share(context_parallel_rank, context_parallel_size)
    return [
        share.packed(batch, part, row, width)
        if pack
        else share.padded(batch, part, largest if uniform else max(1, len(part)), width)
        for part, row, pack, width in zip(groups, rows, packs, widths, strict=True)
    ]


@dataclass(frozen=True)
class _Share:
    """Makes one context-parallel rank's share of micro-batches."""

    rank: int
    size: int

    def padded(
        self, batch: TokenBatch, part: tuple[int, ...], lines: int, width: int
    ) -> MicroBatch:
        """Rows `part` of the batch below each other, `width` whole positions each."""
        positions = self._positions(width).repeat(lines, 1)
        places = [Place(row, line, 0, 0, width) for line, row in enumerate(part)]
        return self._fill(batch, part, positions, places)

    def packed(
        self, batch: TokenBatch, part: tuple[int, ...], row: PackedRow, width: int
    ) -> MicroBatch:
        """Rows `part` of the batch behind each other, then padding up to `width` positions."""
        segments = row.segments
        if padding := width - row.width:
            segments = Segments((*segments.lengths, padding), (*segments.prefixes, None))
        positions = [
            segments.first_position(number) + self._positions(length)
            for number, length in enumerate(segments.lengths)
        ]
        filled = self._fill(batch, part, torch.cat(positions)[None], row.places)
        return dataclasses.replace(filled, segments=segments)

    def _positions(self, length: int) -> Tensor:
        return zigzag_positions(length, self.rank, self.size)

    def _fill(
        self,
        batch: TokenBatch,
        part: tuple[int, ...],
        position_ids: Tensor,
        places: list[Place],
    ) -> MicroBatch:
        """Puts the tokens of sequences into their places, and finds what predicts their targets."""
        # NumPy, whose calls cost a fraction of torch's: there are several for every sequence.
        token_ids, loss_mask = batch.token_ids.numpy(), batch.loss_mask.numpy()
        prompts, responses = batch.prompt_lengths.tolist(), batch.response_lengths.tolist()
        # Token 0 fills the tails: causal attention keeps it from being seen.
        tokens = np.zeros(position_ids.shape, dtype=np.int64)
        padding = np.ones(position_ids.shape, dtype=bool)
        lines = len(tokens)
        columns: list[list[np.ndarray]] = [[], [], [], []]
        for row, line, whole_start, first, length in places:
            prompt, response = prompts[row], responses[row]
            whole = token_ids[row, : prompt + response]
            fed = whole[:-1]
            # Positions of the sequence that this context-parallel rank has.
            start, local = whole_start // self.size, first + self._positions(length).numpy()
            real = (local < len(fed)).nonzero()[0]
            tokens[line, start + real] = fed[local[real]]
            padding[line, start + real] = False
            # The state at position t predicts the token at t + 1: response token t + 1 - prompt.
            target = local - (prompt - 1)
            predicting = ((target >= 0) & (target < response)).nonzero()[0]
            predicting = predicting[loss_mask[row, target[predicting]]]
            target = target[predicting]
            # States are flattened as [s, b].
            columns[0].append((start + predicting) * lines + line)
            columns[1].append(whole[prompt + target])
            columns[2].append(np.full_like(target, row))
            columns[3].append(target)
        empty = np.empty(0, dtype=np.int64)
        state_index, targets, sequence_index, response_position = (
            torch.from_numpy(np.concatenate([empty, *column])) for column in columns
        )
        return MicroBatch(
            tokens=torch.from_numpy(tokens),
            position_ids=position_ids,
            state_index=state_index,
            targets=targets,
            sequence_index=sequence_index,
            response_position=response_position,
            sequences=part,
            padding=torch.from_numpy(padding) if padding.any() else None,
        )
