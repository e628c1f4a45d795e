"""cuDNN's fused attention, and what a ring of context-parallel ranks does with packed sequences."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from megatron_resrl.platform.fake_device.engine.attached import device, empty, kernel
from megatron_resrl.platform.fake_device.kernels import ATTENTION_PRODUCTS

LAYOUTS: dict[Any, str] = {}
"""Transformer Engine's number of a layout -> its name; filled in by `install`."""
MASKS: dict[Any, str] = {}
"""The same of masks."""


def fused_attn_fwd(
    max_q: int,
    max_kv: int,
    training: bool,
    scale: float,
    dropout: float,
    fill: bool,
    layout: Any,
    bias_type: Any,
    mask: Any,
    softmax_type: Any,
    window: Any,
    cu_q: torch.Tensor,
    cu_kv: torch.Tensor,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    *rest: Any,
) -> list[torch.Tensor]:
    """The output like `q`, and the softmax's log-sum-exp: [b, h, s, 1], packed [t, h, 1]."""
    name = LAYOUTS[layout]
    out = empty(*q.shape, dtype=q.dtype)
    rows = _batch_and_length(name, q)
    shape = q.shape[:-1] if rows is None else (rows[0], q.shape[-2], rows[1])
    log_sums = empty(*shape, 1, dtype=torch.float32)
    random_state = empty(2, dtype=torch.int64)
    flops = _flops(name, MASKS[mask], q, k, (cu_q, cu_kv), (max_q, max_kv), "forward")
    kernel([q, k, v], [out, log_sums], flops)
    return [out, log_sums, random_state]


def fused_attn_bwd(
    max_q: int,
    max_kv: int,
    scale: float,
    dropout: float,
    fill: bool,
    layout: Any,
    bias_type: Any,
    mask: Any,
    softmax_type: Any,
    window: Any,
    deterministic: bool,
    cu_q: torch.Tensor,
    cu_kv: torch.Tensor,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    *rest: Any,
) -> list[torch.Tensor | None]:
    """Gradients of queries, keys and values.

    A workspace holds the fp32 sum of dQ and a number per query, the sum of its row.
    """
    name = LAYOUTS[layout]
    found = [empty(*each.shape, dtype=each.dtype) for each in (q, k, v)]
    if device().workspaces:
        shapes = (q.shape, q.shape[:-1])
        workspace = [empty(*shape, dtype=torch.float32) for shape in shapes]
        del workspace
    flops = _flops(name, MASKS[mask], q, k, (cu_q, cu_kv), (max_q, max_kv), "backward")
    kernel([q, k, v], found, flops)
    return [*found, None, None]


def _batch_and_length(layout: str, q: torch.Tensor) -> tuple[int, int] | None:
    """Of queries in one of its layouts; None: sequences are packed."""
    if layout.startswith("thd"):
        return None
    return (q.shape[1], q.shape[0]) if layout.startswith("sb") else (q.shape[0], q.shape[1])


def _flops(
    layout: str,
    mask: str,
    q: torch.Tensor,
    k: torch.Tensor,
    starts: tuple[torch.Tensor, torch.Tensor],
    longest: tuple[int, int],
    direction: str,
) -> float:
    """Operations of the matrix products: under a causal mask half of a square of scores."""
    heads, width = q.shape[-2:]
    rows, columns = _batch_and_length(layout, q), _batch_and_length(layout, k)
    if rows is not None and columns is not None:
        pairs = rows[0] * _pairs(rows[1], columns[1], mask)
    else:
        lengths = [_lengths(each, most) for each, most in zip(starts, longest, strict=True)]
        pairs = sum(_pairs(own, other, mask) for own, other in zip(*lengths, strict=False))
    return 2 * ATTENTION_PRODUCTS[direction] * heads * width * pairs


def _pairs(queries: int, keys: int, mask: str) -> float:
    return queries * (keys - queries / 2 if "causal" in mask and keys >= queries else keys)


def _lengths(starts: torch.Tensor, longest: int) -> Sequence[int]:
    """Of packed sequences, where their starts are known; else all are as long as the longest."""
    known = device().numbers.of(starts)
    return [longest] * (len(starts) - 1) if known is None else known.diff().tolist()


def thd_read_half_tensor(tensor: torch.Tensor, starts: torch.Tensor, half: int) -> torch.Tensor:
    """The first (0) or second (1) half of every sequence."""
    dim = 1 if tensor.dim() == 4 else 0  # Keys and values may come stacked: [2, t, heads, d].
    shape = [*tensor.shape]
    shape[dim] //= 2
    out = empty(*shape, dtype=tensor.dtype)
    kernel([out], [out])
    return out


def thd_read_second_half_lse(
    log_sums: torch.Tensor, starts: torch.Tensor, packed: bool, length: int
) -> torch.Tensor:
    """[heads, half of the tokens]."""
    out = empty(log_sums.shape[0], length, dtype=log_sums.dtype)
    kernel([out], [out])
    return out


def thd_second_half_lse_correction(
    log_sums: torch.Tensor, step: torch.Tensor, starts: torch.Tensor, packed: bool
) -> None:
    """Adds the keys of one step of the ring."""
    kernel([step, step], [step])


def thd_out_correction(
    out: torch.Tensor, step: torch.Tensor, log_sums: torch.Tensor, *rest: Any
) -> None:
    """Adds one step's output, weighted by its share of the softmax."""
    kernel([step, step], [step])


def thd_grad_correction(
    grad: torch.Tensor, step: torch.Tensor, starts: torch.Tensor, first: str, second: str
) -> None:
    """Copies or adds one step's gradient to each half, or leaves it ("none")."""
    kernel([step], [step])


FUNCTIONS = (
    fused_attn_fwd,
    fused_attn_bwd,
    thd_read_half_tensor,
    thd_read_second_half_lse,
    thd_second_half_lse_correction,
    thd_out_correction,
    thd_grad_correction,
)
