"""FP8: rounding to e4m3 or e5m2 with one scale per tensor or per block, and back."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist

from compiled_in_torch.block_scaling import block_values, is_blockwise, quantize_blocks
from megatron_resrl.platform.engine_python.kinds import FP8, TORCH_DTYPE, DType


def is_quantized(tensor: Any) -> bool:
    """Whether a tensor is one of Transformer Engine's in FP8."""
    return hasattr(tensor, "_fp8_dtype")


def shape_of(tensor: Any) -> tuple[int, ...]:
    """Of a tensor that may be FP8 and hold nothing but its transpose."""
    if hasattr(tensor, "_scale_inv") and tensor._data is None:
        return (*tensor._transpose.shape[1:], tensor._transpose.shape[0])
    return tuple(tensor.size())


def values_of(tensor: Any, *, columnwise: bool = False) -> torch.Tensor:
    """The numbers of a tensor that may be FP8.

    Args:
        tensor: Transformer Engine's or torch's.
        columnwise: Those of the copy that products over its columns read, where that copy has other
            scales.
    """
    if not is_quantized(tensor):
        return tensor
    if is_blockwise(tensor):
        return block_values(tensor, columnwise=columnwise)
    kind, _ = FP8[tensor._fp8_dtype]
    if tensor._data is not None:
        return tensor._data.view(kind).float() * tensor._scale_inv
    turned = tensor._transpose.view(kind).float() * tensor._scale_inv
    return turned.permute(*range(1, turned.dim()), 0)


def quantize(source: torch.Tensor, quantizer: Any, out: Any = None, noop: Any = None) -> Any:
    """Rounds to FP8 with the scale of this tensor (current scaling), of the last ones (delayed), or
    of each of its blocks."""
    if out is None:
        out = quantizer.make_empty(source.shape, dtype=source.dtype, device=source.device)
    if is_blockwise(out):
        quantize_blocks(source, quantizer, out)
        return out
    kind, largest = FP8[quantizer.dtype]
    amax = source.abs().max().float() if source.numel() else torch.zeros(())
    if type(quantizer).__name__ == "Float8CurrentScalingQuantizer":
        if quantizer.with_amax_reduction:
            dist.all_reduce(amax, dist.ReduceOp.MAX, quantizer.amax_reduction_group)
        quantizer.amax.fill_(amax)
        quantizer.scale.fill_(largest / amax if amax > 0 else 1.0)
    else:
        quantizer.amax.fill_(torch.maximum(quantizer.amax.max(), amax))
    scaled = (source.float() * quantizer.scale).clamp(-largest, largest)
    data = scaled.to(kind).view(torch.uint8)
    if out._data is not None:
        out._data.copy_(data.view_as(out._data))
    if out._transpose is not None:
        out._transpose.copy_(fp8_transpose(data, quantizer.dtype).view_as(out._transpose))
        out._transpose_invalid = False
    out._scale_inv.copy_(1 / quantizer.scale)
    return out


def dequantize(tensor: Any, dtype: DType) -> torch.Tensor:
    """The numbers in a wider type."""
    return values_of(tensor).to(TORCH_DTYPE[dtype])


def fp8_transpose(data: torch.Tensor, dtype: DType, out: Any = None) -> torch.Tensor:
    """The last dimension first."""
    turned = data.permute(-1, *range(data.dim() - 1)).contiguous()
    return turned if out is None else out.copy_(turned)


def split_quantize(tensor: torch.Tensor, splits: list[int], quantizers: list[Any]) -> list[Any]:
    """Rounds the rows of each expert with its own scale."""
    return [quantize(part, own) for part, own in zip(tensor.split(splits), quantizers, strict=True)]


def bgrad_quantize(gradient: torch.Tensor, quantizer: Any) -> tuple[torch.Tensor, Any]:
    """The gradient of a bias, and the gradient in FP8."""
    return gradient.reshape(-1, gradient.shape[-1]).sum(0), quantize(gradient, quantizer)


def fused_amax_and_scale_update_after_reduction(
    reduced: torch.Tensor,
    histories: list[torch.Tensor],
    scales: list[torch.Tensor],
    algorithm: str,
    dtype: DType,
    margin: float,
) -> None:
    """Delayed scaling: the largest number of the last steps gives the scale of the next."""
    done = 0
    for history, scale in zip(histories, scales, strict=True):
        width = history.shape[1]
        history[0] = reduced[done : done + width]
        done += width
        amax = history.amax(0) if algorithm == "max" else history[0]
        fresh = FP8[dtype][1] / amax / 2**margin
        scale.copy_(torch.where((amax > 0) & amax.isfinite(), fresh, scale))
        history.copy_(history.roll(-1, 0))
        history[0].zero_()


FUNCTIONS = (
    quantize,
    dequantize,
    fp8_transpose,
    split_quantize,
    bgrad_quantize,
    fused_amax_and_scale_update_after_reduction,
)
