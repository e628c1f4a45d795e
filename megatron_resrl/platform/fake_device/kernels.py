"""Kernels that torch runs on CUDA in one piece and elsewhere takes apart: what they hold and do."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from megatron_resrl.platform.fake_device.work import count_kernel

if TYPE_CHECKING:
    from megatron_resrl.platform.fake_device.device import FakeDevice

ATTENTION_PRODUCTS = {"forward": 2, "backward": 5}
"""Matrix products of scores: Q K and P V; backward S, dV, dP, dQ and dK."""


class FlashAttention(torch.autograd.Function):
    """FlashAttention-2, or with a mask the memory-efficient kernel, as torch calls them: keeps its
    output and an fp32 number per query."""

    @staticmethod
    def forward(
        ctx: Any,
        device: FakeDevice,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        causal: bool,
        bias: torch.Tensor | None,
    ) -> torch.Tensor:
        """[b, heads, q, d], [b, groups, k, d] twice, [q, k] or more -> [b, heads, q, d]."""
        batch, heads, queries, _ = query.shape
        out = torch.empty_like(query)
        statistics = query.new_empty(batch, heads, queries, dtype=torch.float32)
        ctx.save_for_backward(query, key, value, out, statistics, bias)
        ctx.device, ctx.causal = device, causal
        flops = attention_flops(query, key, causal, "forward")
        count_kernel(device.ledger, [query, key, value], [out, statistics], flops)
        return out

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> Any:
        """Gradients of query, key and value."""
        query, key, value, out, statistics, _ = ctx.saved_tensors
        # dQ is summed in fp32, and each query has the sum of a row.
        wide = torch.empty_like(query, dtype=torch.float32)
        sums = torch.empty_like(statistics)
        of_query = torch.empty_like(query)
        of_key, of_value = torch.empty_like(key), torch.empty_like(value)
        expanded = []
        if key.shape[1] != query.shape[1]:
            # Gradients of keys are made for each head, and then summed over a group's heads.
            shape = (key.shape[0], key.shape[2], query.shape[1], key.shape[3])
            expanded = [key.new_empty(shape), value.new_empty(shape)]
        flops = attention_flops(query, key, ctx.causal, "backward")
        read = [gradient, query, key, value, out, statistics]
        count_kernel(
            ctx.device.ledger,
            read,
            [wide, sums, of_query, of_key, of_value, *expanded],
            flops,
            query.dtype,
        )
        return None, of_query, of_key, of_value, None, None


def attention_flops(query: torch.Tensor, key: torch.Tensor, causal: bool, direction: str) -> float:
    """Operations of attention's matrix products.

    Args:
        query: [b, heads, q, d].
        key: [b, groups, k, d].
        causal: Half of a square of scores is left out.
        direction: "forward" or "backward".
    """
    batch, heads, queries, width = query.shape
    pairs = queries * key.shape[2] / (2 if causal else 1)
    return 2 * ATTENTION_PRODUCTS[direction] * batch * heads * pairs * width


class FusedRmsNorm(torch.autograd.Function):
    """The norm's kernel, which keeps its input and one fp32 number per row."""

    @staticmethod
    def forward(
        ctx: Any, device: FakeDevice, x: torch.Tensor, weight: torch.Tensor
    ) -> torch.Tensor:
        """[..., H], [H] -> [..., H]."""
        statistics = x.new_empty(*x.shape[:-1], 1, dtype=torch.float32)
        out = torch.empty_like(x)
        ctx.save_for_backward(x, weight, statistics)
        ctx.device = device
        count_kernel(device.ledger, [x, weight], [out, statistics])
        return out

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> Any:
        """Gradients of x and weight."""
        x, weight, statistics = ctx.saved_tensors
        of_x, of_weight = torch.empty_like(x), torch.empty_like(weight)
        count_kernel(ctx.device.ledger, [gradient, x, weight, statistics], [of_x, of_weight])
        return None, of_x, of_weight


def attention(
    device: FakeDevice,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attn_mask: torch.Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> torch.Tensor | None:
    """`scaled_dot_product_attention` where CUDA has a kernel for it; None: it is taken apart.

    With grouped queries and a mask, or in fp32, torch makes a matrix of scores on CUDA, too. A mask
    of truth values becomes one of numbers, which is as large for all heads together.
    """
    wide = query.dtype not in (torch.bfloat16, torch.float16)
    if enable_gqa and (wide or attn_mask is not None):
        return None
    bias = None if attn_mask is None else query.new_zeros(attn_mask.shape)
    return FlashAttention.apply(device, query, key, value, is_causal, bias)


def rms_norm(
    device: FakeDevice,
    input: torch.Tensor,
    normalized_shape: Any,
    weight: torch.Tensor | None = None,
    eps: float | None = None,
) -> torch.Tensor | None:
    """`rms_norm` with a weight; None: it is taken apart."""
    return None if weight is None else FusedRmsNorm.apply(device, input, weight)
