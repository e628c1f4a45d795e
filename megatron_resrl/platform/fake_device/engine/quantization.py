"""Tensors in FP8: their buffers, their kernels, and the reductions of their scales."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist

from megatron_resrl.platform.engine_python.kinds import (
    FP8,
    TORCH_DTYPE,
    DType,
    Float8BlockScaleTensorFormat,
)
from megatron_resrl.platform.fake_device.engine.attached import device, empty, kernel

_BUFFERS = (
    *("_data", "_transpose", "_scale_inv"),
    *("_rowwise_data", "_columnwise_data", "_rowwise_scale_inv", "_columnwise_scale_inv"),
)
"""Attributes of Transformer Engine's FP8 tensors that hold memory."""


def is_fp8(tensor: Any) -> bool:
    """Whether a tensor is one of Transformer Engine's, in FP8."""
    return hasattr(tensor, "_fp8_dtype")


def buffers_of(tensor: Any) -> list[torch.Tensor]:
    """The tensors that hold a tensor's numbers, with their scales."""
    if not is_fp8(tensor):
        return [tensor]
    found = (getattr(tensor, name, None) for name in _BUFFERS)
    return [each for each in found if each is not None]


def shape_of(tensor: Any) -> tuple[int, ...]:
    """Of a tensor that may be FP8 and hold nothing but its transpose."""
    if not is_fp8(tensor):
        return tuple(tensor.shape)
    whole = getattr(tensor, "_data", None)
    if whole is None:
        whole = getattr(tensor, "_rowwise_data", None)
    if whole is not None:
        return tuple(whole.shape)
    turned = getattr(tensor, "_transpose", None)
    if turned is not None:
        return (*turned.shape[1:], turned.shape[0])
    columns = tuple(tensor._columnwise_data.shape)
    # Blocks of 128 are stored last dimension first, but for a gather; blocks of 32 never are.
    ready = getattr(tensor, "_data_format", None) == Float8BlockScaleTensorFormat.GEMM_READY
    return (*columns[1:], columns[0]) if ready else columns


def product_dtype(tensor: Any) -> torch.dtype:
    """Number format in which a matrix product reads a tensor."""
    return FP8[tensor._fp8_dtype][0] if is_fp8(tensor) else tensor.dtype


def quantize(source: torch.Tensor, quantizer: Any, out: Any = None, noop: Any = None) -> Any:
    """Rounds to FP8.

    With scales of the tensor itself (current scaling) its largest number is found first, by a pass
    of its own, and among the ranks that share the tensor. Other recipes need one pass.
    """
    if type(quantizer).__name__ == "Float8CurrentScalingQuantizer":
        if not quantizer.use_existing_amax:
            kernel([source], [quantizer.amax])
        if quantizer.with_amax_reduction:
            dist.all_reduce(quantizer.amax, dist.ReduceOp.MAX, quantizer.amax_reduction_group)
        kernel([quantizer.amax], [quantizer.scale])
    if out is None:
        out = _new(quantizer, tuple(source.shape), source.dtype)
    kernel([source], buffers_of(out))
    if getattr(out, "_transpose", None) is not None:
        out._transpose_invalid = False
    return out


def _new(quantizer: Any, shape: tuple[int, ...], dtype: torch.dtype) -> Any:
    """What the compiled quantizers make: a tensor, or for internal use its storage alone."""
    turned = hasattr(quantizer, "amax") and torch.cuda.get_device_capability() >= (10, 0)
    usages = quantizer.get_usages()
    if turned:  # Blackwell's products take whole tensors in any order.
        quantizer.set_usage(rowwise=True, columnwise=False)
    made = quantizer.make_empty(shape, dtype=dtype, device=device().device)
    quantizer.set_usage(**usages)
    if not quantizer.internal:
        return made
    storage = type(made).__mro__[1]
    return storage(**made.get_metadata())


def dequantize(tensor: Any, dtype: DType) -> torch.Tensor:
    """The numbers in a wider type."""
    out = empty(*shape_of(tensor), dtype=TORCH_DTYPE[dtype])
    kernel(buffers_of(tensor), [out])
    return out


def fp8_transpose(
    data: torch.Tensor, dtype: DType, *, out: torch.Tensor | None = None
) -> torch.Tensor:
    """The last dimension first."""
    if out is None:
        out = empty(data.shape[-1], *data.shape[:-1], dtype=data.dtype)
    kernel([data], [out])
    return out


def swap_first_dims(tensor: torch.Tensor, *, out: torch.Tensor | None = None) -> torch.Tensor:
    """The first two dimensions change places."""
    if out is None:
        out = empty(tensor.shape[1], tensor.shape[0], *tensor.shape[2:], dtype=tensor.dtype)
    kernel([tensor], [out])
    return out


def split_quantize(
    tensor: torch.Tensor, splits: Sequence[int], quantizers: Sequence[Any]
) -> list[Any]:
    """Rounds the rows of each expert with its own scale."""
    return [quantize(part, own) for part, own in zip(tensor.split(splits), quantizers, strict=True)]


def bgrad_quantize(gradient: torch.Tensor, quantizer: Any) -> tuple[torch.Tensor, Any]:
    """The gradient of a bias, and the gradient in FP8."""
    bias = empty(gradient.shape[-1], dtype=gradient.dtype)
    kernel([gradient], [bias])
    return bias, quantize(gradient, quantizer)


def fused_amax_and_scale_update_after_reduction(
    reduced: torch.Tensor,
    histories: Sequence[torch.Tensor],
    scales: Sequence[torch.Tensor],
    algorithm: str,
    dtype: DType,
    margin: float,
) -> None:
    """Delayed scaling: the largest number of the last steps gives the scale of the next."""
    kernel([reduced, *histories], [*histories, *scales])


FUNCTIONS = (
    quantize,
    dequantize,
    fp8_transpose,
    swap_first_dims,
    split_quantize,
    bgrad_quantize,
    fused_amax_and_scale_update_after_reduction,
)
