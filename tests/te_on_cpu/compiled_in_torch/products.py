"""Matrix products and RMSNorm, with the rounding of their results and in fp32 inside."""

from __future__ import annotations

from typing import Any

import torch

from compiled_in_torch.quantization import is_quantized, quantize, shape_of, values_of
from megatron_resrl.platform.engine_python.kinds import TORCH_DTYPE, DType


def generic_gemm(
    A: Any,
    transa: bool,
    B: Any,
    transb: bool,
    out: torch.Tensor | None,
    quantizer: Any,
    out_dtype: DType | None,
    bias: torch.Tensor | None,
    bias_dtype: Any,
    gelu: bool,
    gelu_in: Any,
    grad: bool,
    workspace: Any,
    workspace_size: int,
    accumulate: bool,
    use_split_accumulator: bool,
    **overlap: Any,
) -> tuple[Any, torch.Tensor | None, None, None]:
    """cuBLAS's column-major product; seen row by row it is op(B) @ op(A).

    Raises:
        NotImplementedError: A fused GELU, or communication beside the product.
        RuntimeError: An FP8 product whose lengths are not multiples of 16, as of cuBLAS.
    """
    if gelu or any(overlap.get(name) for name in ("comm_overlap", "bulk_overlap")):
        raise NotImplementedError("products with GELU or communication are not answered on a CPU")
    in_fp8 = is_quantized(A)
    dtype, leading = A.dtype if not in_fp8 else torch.bfloat16, shape_of(B)[:-1]
    # What is summed over lies along the rows of A if it is transposed, and of B if it is not.
    a, b = values_of(A, columnwise=not transa), values_of(B, columnwise=transb)
    a, b = a.reshape(-1, a.shape[-1]), b.reshape(-1, b.shape[-1])
    a = a.t() if transa else a
    b = b.t() if transb else b
    if in_fp8 and any(length % 16 for length in (*a.shape, b.shape[0] if transb else 16)):
        raise RuntimeError(f"cuBLAS takes no FP8 product of {tuple(b.shape)} and {tuple(a.shape)}")
    result = b.float() @ a.float()
    bias_gradient = None
    if bias is not None and grad:
        bias_gradient = b.sum(1).to(bias.dtype) if transb else None
    elif bias is not None:
        result = result + bias.float()
    if not transb:
        result = result.view(*leading, result.shape[-1])
    if out is not None:
        out.add_(result.view_as(out)) if accumulate else out.copy_(result.view_as(out))
        return out, bias_gradient, None, None
    result = result.to(dtype if out_dtype is None else TORCH_DTYPE[out_dtype])
    return result if quantizer is None else quantizer(result), bias_gradient, None, None


def te_general_grouped_gemm(
    A: list[Any],
    transa: bool,
    B: list[Any],
    transb: bool,
    out: list[torch.Tensor],
    out_dtype: Any,
    splits: list[int],
    bias: list[torch.Tensor],
    bias_dtype: Any,
    single_output: bool,
    gelu_in: Any,
    grad: bool,
    workspaces: Any,
    workspace_size: int,
    accumulate: bool,
    use_split_accumulator: bool,
    multiprocessors: int,
) -> list[torch.Tensor]:
    """One product per expert; with a single output, results lie one after the other in out[0]."""
    places = out[0].split(splits) if single_output else out
    for number, (a, b, place) in enumerate(zip(A, B, places, strict=True)):
        if place.numel() == 0:
            continue
        if b.numel() == 0:  # An expert without tokens has no gradient.
            if not accumulate:
                place.zero_()
            continue
        own = bias[number] if bias[number].numel() else None
        given = None if grad else own
        generic_gemm(
            *(a, transa, b, transb, place, None, None, given, None, False, None, grad, None, 0),
            *(accumulate, False),
        )
        if grad and own is not None:
            own.copy_(b.sum(0))
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
    """The normed rows, and 1 / their root mean squares in fp32."""
    wide = x.float()
    scale = (wide.square().mean(-1) + eps).rsqrt()
    result = (wide * scale[:, None] * _gain(weight, zero_centered)).to(TORCH_DTYPE[dtype])
    if quantizer is not None:
        result = quantize(result, quantizer, out)
    elif out is not None:
        result = out.copy_(result)
    return result, None, scale


def rmsnorm_bwd(
    gradient: torch.Tensor,
    x: torch.Tensor,
    scale: torch.Tensor,
    weight: torch.Tensor,
    margin: int,
    zero_centered: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The gradients of rows and weight."""
    normed = x.float() * scale[:, None]
    own = gradient.float() * _gain(weight, zero_centered)
    dx = scale[:, None] * (own - normed * (own * normed).mean(-1, keepdim=True))
    return dx.to(x.dtype), (gradient.float() * normed).sum(0).to(weight.dtype)


def _gain(weight: torch.Tensor, zero_centered: bool) -> torch.Tensor:
    return weight.float() + (1 if zero_centered else 0)


FUNCTIONS = (generic_gemm, te_general_grouped_gemm, rmsnorm_fwd, rmsnorm_bwd)
