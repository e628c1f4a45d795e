"""Which tokens of responses are thinking: those between the model's markers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from megatron_resrl.data.packing import TokenSequence
from megatron_resrl.errors import InputError


def think_marker_ids(tokenizer: Any, markers: tuple[str, str]) -> tuple[int, int]:
    """Token ids of `resrl.think_markers`.

    Raises:
        InputError: A marker is not a token of its own in this model's vocabulary.
    """
    vocabulary = tokenizer.get_vocab()
    for marker in markers:
        if marker not in vocabulary:
            raise InputError(
                f"resrl.think_markers has {marker!r}, which is not one token of this model's "
                "vocabulary; give the markers that the model itself writes, or set "
                "resrl.mask_think to false"
            )
    return vocabulary[markers[0]], vocabulary[markers[1]]


def think_mask(sequences: Sequence[TokenSequence], opening: int, closing: int) -> torch.Tensor:
    """Marks response tokens from an opening marker to the next closing one, both included.

    A span may begin in the prompt (chat templates open it there) and runs to the end of the
    response where nothing closes it. A closing marker without an opening one marks nothing.

    Args:
        sequences: B prompts with their responses.
        opening: Token id of the opening marker.
        closing: Token id of the closing marker.

    Returns:
        [B, T] bool on the CPU, T the longest response; False beyond a response's end.
    """
    rows = [torch.tensor((*s.prompt, *s.response), dtype=torch.int64) for s in sequences]
    tokens_BL = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=-1)
    place_L = torch.arange(tokens_BL.shape[1]).expand_as(tokens_BL)
    never = torch.full_like(place_L, -1)
    opened_BL = torch.where(tokens_BL == opening, place_L, never).cummax(1).values
    closed_BL = torch.where(tokens_BL == closing, place_L, never).cummax(1).values
    inside_BL = (opened_BL > closed_BL) | ((closed_BL == place_L) & _was_open(opened_BL, closed_BL))
    prompts_B1 = torch.tensor([len(s.prompt) for s in sequences]).unsqueeze(1)
    lengths_B1 = torch.tensor([len(s.response) for s in sequences]).unsqueeze(1)
    position_T = torch.arange(int(lengths_B1.max()))
    source_BT = (prompts_B1 + position_T).clamp_max(tokens_BL.shape[1] - 1)
    return inside_BL.gather(1, source_BT) & (position_T < lengths_B1)


def _was_open(opened_BL: torch.Tensor, closed_BL: torch.Tensor) -> torch.Tensor:
    """Whether a span was open just before each place."""
    before_BL = torch.zeros_like(opened_BL, dtype=torch.bool)
    before_BL[:, 1:] = opened_BL[:, :-1] > closed_BL[:, :-1]
    return before_BL
