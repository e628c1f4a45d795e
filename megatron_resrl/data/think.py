"""Which tokens of responses are thinking: those between the model's markers."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

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


def think_mask(
    token_ids_BL: Tensor,
    prompt_lengths_B: Tensor,
    response_lengths_B: Tensor,
    markers: tuple[int, int],
    longest: int,
) -> Tensor:
    """Marks response tokens from an opening marker to the next closing one, both included.

    A span may begin in the prompt (chat templates open it there) and runs to the end of the
    response where nothing closes it. A closing marker without an opening one marks nothing.

    Args:
        token_ids_BL: [B, L] int64 on the CPU: prompt, response, padding.
        prompt_lengths_B: [B] int64.
        response_lengths_B: [B] int64.
        markers: Token ids of the opening and of the closing marker.
        longest: T, at least the tokens of the longest response.

    Returns:
        [B, T] bool on the CPU; False past a response's end.
    """
    opening, closing = markers
    position_BL = torch.arange(token_ids_BL.shape[1]).expand_as(token_ids_BL)
    never = torch.full_like(position_BL, -1)
    # Position of the last opening and of the last closing marker up to each token.
    opened_BL = torch.where(token_ids_BL == opening, position_BL, never).cummax(1).values
    closed_BL = torch.where(token_ids_BL == closing, position_BL, never).cummax(1).values
    closes_BL = (closed_BL == position_BL) & _was_open(opened_BL, closed_BL)
    inside_BL = (opened_BL > closed_BL) | closes_BL
    # [B, L] -> [B, T]: response token t stands behind the prompt.
    position_T = torch.arange(longest)
    source_BT = (prompt_lengths_B[:, None] + position_T).clamp_max(token_ids_BL.shape[1] - 1)
    return inside_BL.gather(1, source_BT) & (position_T < response_lengths_B[:, None])


def _was_open(opened_BL: Tensor, closed_BL: Tensor) -> Tensor:
    """Whether a span was open just before each place."""
    before_BL = torch.zeros_like(opened_BL, dtype=torch.bool)
    before_BL[:, 1:] = opened_BL[:, :-1] > closed_BL[:, :-1]
    return before_BL
