"""The fused rotation of queries and keys by their positions."""

from __future__ import annotations

from typing import Any

import torch

from megatron_resrl.platform.fake_device.engine.attached import empty, kernel


def fused_rope_forward(
    states: torch.Tensor, angles: torch.Tensor, start: torch.Tensor | None, *rest: Any
) -> torch.Tensor:
    """Like `states`, [s, b, heads, head_dim]; sines and cosines stay in the kernel."""
    out = empty(*states.shape, dtype=states.dtype)
    kernel([states, angles], [out])
    return out


def fused_rope_backward(
    gradient: torch.Tensor, angles: torch.Tensor, start: torch.Tensor | None, *rest: Any
) -> torch.Tensor:
    """Like `gradient`."""
    return fused_rope_forward(gradient, angles, start)


FUNCTIONS = (fused_rope_forward, fused_rope_backward)
