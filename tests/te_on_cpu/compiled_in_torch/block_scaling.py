"""FP8 by blocks: a scale for 1 x 128 or 128 x 128 numbers, or for 32 of them (MXFP8).

Data and scales lie as Transformer Engine's kernels put them, so that its own Python reads them.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
import torch.nn.functional as F

from megatron_resrl.platform.engine_python.kinds import FP8, DType, Float8BlockScaleTensorFormat

_MX_BLOCK = 32
_BIAS = 127
"""Of the exponent of an fp32 number, and of a scale of MXFP8."""


def is_blockwise(tensor: Any) -> bool:
    """Whether a quantized tensor has scales of blocks."""
    return hasattr(tensor, "_rowwise_scale_inv")


def quantize_blocks(source: torch.Tensor, quantizer: Any, out: Any) -> None:
    """Rounds [..., K] to `out`, as `Float8BlockQuantizer` or `MXFP8Quantizer` asks.

    Rows and columns are rounded each for themselves: the two copies hold different numbers.
    """
    wide = source.float().reshape(-1, source.shape[-1])
    mx = type(quantizer).__name__ == "MXFP8Quantizer"
    round_to = _round_mx if mx else _round_float8
    if out._rowwise_data is not None:
        data, scale_inv = round_to(wide, quantizer)
        compact = not mx and out._data_format == Float8BlockScaleTensorFormat.COMPACT
        turned = not mx and quantizer.block_scaling_dim == 1 and not compact
        out._rowwise_data.copy_(data.view_as(out._rowwise_data))
        _put(scale_inv.t() if turned else scale_inv, out._rowwise_scale_inv)
    if out._columnwise_data is not None:
        # Blocks along the columns are blocks along the rows of the transpose.
        data, scale_inv = round_to(wide.t().contiguous(), quantizer)
        compact = not mx and out._data_format == Float8BlockScaleTensorFormat.COMPACT
        turned = mx or quantizer.block_scaling_dim == 1
        data = data.t().contiguous() if mx or compact else data
        out._columnwise_data.copy_(data.view_as(out._columnwise_data))
        _put(scale_inv.t() if turned else scale_inv, out._columnwise_scale_inv)


def block_values(tensor: Any, *, columnwise: bool) -> torch.Tensor:
    """[..., K] fp32: what the copy for products over columns, or over rows, stands for.

    Raises:
        RuntimeError: The tensor does not have that copy.
    """
    data = tensor._columnwise_data if columnwise else tensor._rowwise_data
    if data is None:
        raise RuntimeError(f"the product reads {'columns' if columnwise else 'rows'}: no such data")
    if not hasattr(tensor, "_is_2D_scaled"):
        return _mx_values(tensor, columnwise=columnwise)
    # Transformer Engine's own reading, of the one copy.
    one = copy.copy(tensor.get_metadata())
    for name in ("rowwise", "columnwise"):
        if (name == "columnwise") != columnwise:
            one[f"{name}_data"] = one[f"{name}_scale_inv"] = None
    return _storage_class(tensor)(**one).dequantize(dtype=torch.float32)


def _storage_class(tensor: Any) -> type:
    """The class without autograd of a tensor's class, or that class itself."""
    return next(each for each in type(tensor).__mro__ if each.__name__.endswith("Storage"))


def _round_float8(wide: torch.Tensor, quantizer: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """[M, K] fp32 -> the bytes [M, K], and 1 / scale of each block [M or M / 128, K / 128]."""
    kind, largest = FP8[quantizer.dtype]
    rows, columns = wide.shape
    block = quantizer.block_len
    height = block if quantizer.block_scaling_dim == 2 else 1
    padded = F.pad(wide, (0, -columns % block, 0, -rows % height))
    tiles = padded.view(-(-rows // height), height, -1, block)
    amax = tiles.abs().amax((1, 3)).clamp_min(quantizer.amax_epsilon)
    scale = torch.where(amax > 0, largest / amax, 1.0)
    scale = scale.clamp_max(torch.finfo(torch.float32).max)
    if quantizer.force_pow_2_scales:
        # Without the mantissa: the power of two below.
        scale = (scale.view(torch.int32) & ~0x7FFFFF).view(torch.float32)
    scaled = (tiles * scale[:, None, :, None]).clamp(-largest, largest)
    data = scaled.view_as(padded)[:rows, :columns].to(kind).view(torch.uint8)
    return data.contiguous(), 1 / scale


def _round_mx(wide: torch.Tensor, quantizer: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """[M, K] fp32 -> the bytes [M, K], and the exponent of each block's 1 / scale [M, K / 32]."""
    kind, largest = FP8[quantizer.dtype]
    tiles = wide.view(len(wide), -1, _MX_BLOCK)
    bits = (tiles.abs().amax(-1) / largest).view(torch.int32)
    # The power of two above.
    exponent = ((bits >> 23) + ((bits & 0x7FFFFF) > 0)).clamp(0, 254)
    scaled = torch.ldexp(tiles, (_BIAS - exponent)[..., None])
    data = scaled.clamp(-largest, largest).view_as(wide).to(kind).view(torch.uint8)
    return data, exponent.to(torch.uint8)


def _mx_values(tensor: Any, *, columnwise: bool) -> torch.Tensor:
    data = tensor._columnwise_data if columnwise else tensor._rowwise_data
    exponent = tensor._columnwise_scale_inv if columnwise else tensor._rowwise_scale_inv
    kind, _ = FP8[DType(tensor._fp8_dtype)]
    wide = data.view(kind).float().reshape(-1, data.shape[-1])
    rows, columns = wide.shape
    if columnwise:
        exponent = exponent[: rows // _MX_BLOCK, :columns].repeat_interleave(_MX_BLOCK, 0)
    else:
        exponent = exponent[:rows, : columns // _MX_BLOCK].repeat_interleave(_MX_BLOCK, 1)
    return torch.ldexp(wide, exponent.int() - _BIAS).view_as(data)


def _put(scales: torch.Tensor, place: torch.Tensor) -> None:
    """Into the first rows and columns; the rest only makes lengths even."""
    place.zero_()
    place[: scales.shape[0], : scales.shape[1]] = scales
