"""Matrix products and RMSNorm."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch

from megatron_resrl.platform.engine_python.kinds import TORCH_DTYPE, DType
from megatron_resrl.platform.fake_device.engine.attached import empty, kernel
from megatron_resrl.platform.fake_device.engine.quantization import (
    buffers_of,
    is_fp8,
    product_dtype,
    quantize,
    shape_of,
)

_FP8_LENGTHS = 16
"""cuBLAS takes FP8 products of multiples of it."""


def generic_gemm(
    a: Any,
    transpose_a: bool,
    b: Any,
    transpose_b: bool,
    out: torch.Tensor | None,
    quantizer: Any,
    out_dtype: DType | None,
    bias: torch.Tensor | None,
    bias_dtype: DType,
    gelu: bool,
    gelu_in: Any,
    grad: bool,
    workspace: torch.Tensor,
    workspace_size: int,
    accumulate: bool,
    use_split_accumulator: bool,
    **overlap: Any,
) -> tuple[Any, torch.Tensor | None, None, None]:
    """cuBLAS's column-major product; seen row by row it is op(b) @ op(a).

    Raises:
        NotImplementedError: A fused GELU, or communication beside the product.
        RuntimeError: As of cuBLAS: matrices that do not fit, or FP8 products whose lengths are not
            multiples of 16.
    """
    if gelu or any(overlap.get(name) for name in ("comm_overlap", "bulk_overlap")):
        raise NotImplementedError("products with GELU or communication are not dry-run")
    shape, inner = _product_shape(shape_of(a), transpose_a, shape_of(b), transpose_b)
    in_fp8 = is_fp8(a)
    if in_fp8 and any(length % _FP8_LENGTHS for length in (inner, shape[-1])):
        raise RuntimeError(f"cuBLAS takes no FP8 product of {shape_of(b)} and {shape_of(a)}")
    flops = 2 * math.prod(shape) * inner
    if out is None:
        given = torch.bfloat16 if in_fp8 else a.dtype
        out = empty(*shape, dtype=given if out_dtype is None else TORCH_DTYPE[out_dtype])
    elif out.numel() != math.prod(shape):
        raise RuntimeError(f"a product of {shape} does not fit into {tuple(out.shape)}")
    kernel([*buffers_of(a), *buffers_of(b)], [out], flops, product_dtype(a))
    bias_gradient = None
    if grad and bias is not None and transpose_b:
        bias_gradient = empty(shape_of(b)[-1], dtype=bias.dtype)
    result = out if quantizer is None else quantizer(out)
    return result, bias_gradient, None, None


def _product_shape(
    a: tuple[int, ...], transpose_a: bool, b: tuple[int, ...], transpose_b: bool
) -> tuple[tuple[int, ...], int]:
    """Shape of op(b) @ op(a), whose leading dimensions are b's, and the length that is summed."""
    rows_a, rows_b = math.prod(a[:-1]), math.prod(b[:-1])
    inner_a, width = (a[-1], rows_a) if transpose_a else (rows_a, a[-1])
    inner, leading = (rows_b, (b[-1],)) if transpose_b else (b[-1], b[:-1])
    if inner != inner_a:
        raise RuntimeError(f"product of {b} and {a}: {inner} is not {inner_a}")
    return (*leading, width), inner


def te_general_grouped_gemm(
    a: Sequence[Any],
    transpose_a: bool,
    b: Sequence[Any],
    transpose_b: bool,
    out: Sequence[torch.Tensor],
    out_dtype: DType,
    splits: Sequence[int],
    bias: list[torch.Tensor],
    bias_dtype: DType,
    single_output: bool,
    gelu_in: Any,
    grad: bool,
    *rest: Any,
) -> list[torch.Tensor]:
    """One product per expert; with a single output, results lie one after the other in out[0]."""
    places = out[0].split(splits) if single_output else out
    for own_a, own_b, place in zip(a, b, places, strict=True):
        if math.prod(shape_of(own_b)) == 0 or place.numel() == 0:
            continue
        shape, inner = _product_shape(shape_of(own_a), transpose_a, shape_of(own_b), transpose_b)
        if place.numel() != math.prod(shape):
            raise RuntimeError(f"a product of {shape} does not fit into {tuple(place.shape)}")
        flops = 2 * math.prod(shape) * inner
        read = [*buffers_of(own_a), *buffers_of(own_b)]
        kernel(read, [place], flops, product_dtype(own_a))
    return bias


def rmsnorm_fwd(
    x: torch.Tensor,
    weight: torch.Tensor,
    eps: float,
    out: Any,
    quantizer: Any,
    dtype: DType,
    margin: int,
    zero_centered: bool,
) -> tuple[Any, None, torch.Tensor]:
    """The normed rows [n, H], and 1 / their root mean squares [n] in fp32.

    Delayed scaling rounds in the same kernel; other FP8 recipes read the normed rows again, which
    take memory until then.
    """
    statistics = empty(x.shape[0], dtype=torch.float32)
    if type(quantizer).__name__ == "Float8Quantizer":
        result = quantize(x, quantizer, out)
        return result, None, statistics
    rows = out if out is not None and quantizer is None else None
    if rows is None:
        rows = empty(*x.shape, dtype=TORCH_DTYPE[dtype])
    kernel([x, weight], [*buffers_of(rows), statistics])
    result = rows if quantizer is None else quantize(rows, quantizer, out)
    return result, None, statistics


def rmsnorm_bwd(
    gradient: torch.Tensor,
    x: torch.Tensor,
    statistics: torch.Tensor,
    weight: torch.Tensor,
    margin: int,
    zero_centered: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The gradients of rows [n, H] and weight [H]."""
    of_x, of_weight = empty(*x.shape, dtype=x.dtype), empty(*weight.shape, dtype=weight.dtype)
    kernel([gradient, x, weight, statistics], [of_x, of_weight])
    return of_x, of_weight


FUNCTIONS = (generic_gemm, te_general_grouped_gemm, rmsnorm_fwd, rmsnorm_bwd)
