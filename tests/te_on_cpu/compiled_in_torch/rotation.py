"""The fused rotation of queries and keys by their positions."""

from __future__ import annotations

from typing import Any

import torch

CALLS: list[tuple[int, ...]] = []
"""Shapes that have been rotated forward."""


def _rotated(
    states: torch.Tensor, angles: torch.Tensor, sign: float, start: Any, interleaved: bool, cp: int
) -> torch.Tensor:
    """[s, b, heads, d], by angles [s or longer, 1, 1, d]; in fp32 and rounded once, as on CUDA."""
    if start is not None or interleaved or cp != 1:
        raise NotImplementedError("only halves of whole sequences are rotated on a CPU")
    if states.dim() != 4 or angles.shape[1:3] != (1, 1) or not angles.is_contiguous():
        raise ValueError(f"states {tuple(states.shape)}, angles {tuple(angles.shape)}")
    width = angles.shape[-1]
    angles = angles[: len(states)]
    turning, rest = states.float().split([width, states.shape[-1] - width], dim=-1)
    first, second = turning.chunk(2, dim=-1)
    turned = torch.cat((-second, first), dim=-1)
    out = turning * angles.cos() + sign * turned * angles.sin()
    return torch.cat((out, rest), dim=-1).to(states.dtype)


def fused_rope_forward(
    states: torch.Tensor,
    angles: torch.Tensor,
    start: torch.Tensor | None,
    layout: Any,
    interleaved: bool,
    cu_seqlens: torch.Tensor | None,
    cp_size: int,
    cp_rank: int,
) -> torch.Tensor:
    """Rotates by the angles."""
    CALLS.append(tuple(states.shape))
    return _rotated(states, angles, 1.0, start, interleaved, cp_size)


def fused_rope_backward(
    gradient: torch.Tensor,
    angles: torch.Tensor,
    start: torch.Tensor | None,
    layout: Any,
    interleaved: bool,
    cu_seqlens: torch.Tensor | None,
    cp_size: int,
    cp_rank: int,
) -> torch.Tensor:
    """Rotates back: both halves of a pair of angles are equal."""
    return _rotated(gradient, angles, -1.0, start, interleaved, cp_size)


FUNCTIONS = (fused_rope_forward, fused_rope_backward)
