"""Micro-batches: padded token matrices, and where their response tokens are."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class TokenSequence:
    """A prompt and one response, as token ids."""

    prompt: tuple[int, ...]
    response: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.prompt) + len(self.response)


@dataclass(frozen=True)
class MicroBatch:
    """Right-padded model input. The state at position t - 1 predicts the token at position t.

    `b` sequences, `s` input positions (the last token of a sequence is predicted, never fed),
    `n` response tokens of all sequences together, sequence by sequence.
    """

    tokens: torch.Tensor
    """[b, s] int64."""
    state_index: torch.Tensor
    """[n] int64: index into the flattened [s * b] states of the one that predicts each token."""
    targets: torch.Tensor
    """[n] int64: the response tokens."""
    sequence_index: torch.Tensor
    """[n] int64: which of the caller's sequences each token belongs to."""
    response_position: torch.Tensor
    """[n] int64: index of the token in its response."""

    @property
    def position_ids(self) -> torch.Tensor:
        """[b, s] int64."""
        return torch.arange(self.tokens.shape[1], device=self.tokens.device).expand_as(self.tokens)

    def to(self, device: torch.device) -> MicroBatch:
        """The same on another device."""
        return MicroBatch(**{name: value.to(device) for name, value in vars(self).items()})


def make_micro_batches(
    sequences: Sequence[TokenSequence],
    micro_batch_size: int,
    *,
    pad_token_id: int = 0,
    length_multiple: int = 1,
    uniform: bool = False,
    count_multiple: int = 1,
) -> list[MicroBatch]:
    """Cuts `sequences`, in order, into micro-batches.

    Args:
        sequences: Of this data-parallel rank; neighbours share a micro-batch. None at all give one
            micro-batch without response tokens.
        micro_batch_size: Sequences per micro-batch; the last may hold fewer.
        pad_token_id: Fills the tail of shorter sequences; any valid id, causal attention keeps it
            from being seen.
        length_multiple: Padded lengths are multiples of it (sequence parallelism, FP8).
        uniform: Give all micro-batches one shape (the interleaved schedule needs it).
        count_multiple: Append micro-batches without response tokens up to a multiple of it.

    Returns:
        Micro-batches on the CPU.

    Raises:
        ValueError: A sequence has no prompt token, so that no state predicts its first token.
    """
    for number, sequence in enumerate(sequences):
        if not sequence.prompt:
            raise ValueError(
                f"sequence {number} has no prompt token; the first token of a response is "
                "predicted from the one before it"
            )
    slices = [
        list(enumerate(sequences))[start : start + micro_batch_size]
        for start in range(0, len(sequences), micro_batch_size)
    ]
    # At least one: a replica without sequences still takes part in the others' step.
    slices = slices or [[]]
    slices += [[] for _ in range(-len(slices) % count_multiple)]

    def padded(length: int) -> int:
        return math.ceil(max(1, length) / length_multiple) * length_multiple

    longest = padded(max((len(sequence) - 1 for sequence in sequences), default=1))
    micro_batches = []
    for numbered in slices:
        rows = micro_batch_size if uniform else max(1, len(numbered))
        length = padded(max((len(sequence) - 1 for _, sequence in numbered), default=1))
        shape = (rows, longest if uniform else length)
        micro_batches.append(_pad(numbered, shape, pad_token_id))
    return micro_batches


def _pad(
    numbered: list[tuple[int, TokenSequence]], shape: tuple[int, int], pad_token_id: int
) -> MicroBatch:
    tokens = torch.full(shape, pad_token_id, dtype=torch.int64)
    state_index, targets, sequence_index, response_position = [], [], [], []
    rows = shape[0]
    for row, (number, sequence) in enumerate(numbered):
        fed = (*sequence.prompt, *sequence.response)[:-1]
        tokens[row, : len(fed)] = torch.tensor(fed, dtype=torch.int64)
        order = torch.arange(len(sequence.response))
        state_index.append((order + len(sequence.prompt) - 1) * rows + row)
        targets.append(torch.tensor(sequence.response, dtype=torch.int64))
        sequence_index.append(torch.full_like(order, number))
        response_position.append(order)

    def joined(parts: list[torch.Tensor]) -> torch.Tensor:
        return torch.cat(parts) if parts else torch.empty(0, dtype=torch.int64)

    return MicroBatch(
        tokens=tokens,
        state_index=joined(state_index),
        targets=joined(targets),
        sequence_index=joined(sequence_index),
        response_position=joined(response_position),
    )
