"""The device whose books the compiled functions keep."""

from __future__ import annotations

import sys
from collections.abc import Iterable

import torch

from megatron_resrl.platform.fake_device.device import FakeDevice
from megatron_resrl.platform.fake_device.work import count_kernel

_attached: list[FakeDevice] = []


def attach(device: FakeDevice) -> None:
    """From now on compiled functions take their memory from this device.

    Transformer Engine, if it is loaded, asks for the compute capability anew.
    """
    _attached[:] = [device]
    utils = sys.modules.get("transformer_engine.pytorch.utils")
    if utils is not None:
        utils._get_device_compute_capability.cache_clear()


def device() -> FakeDevice:
    """The attached device."""
    return _attached[0]


def empty(*size: int, dtype: torch.dtype) -> torch.Tensor:
    """A contiguous tensor on the device, without a kernel."""
    stride = torch.empty(size, device="meta").stride()
    return device().empty(size, stride, dtype)


def kernel(
    read: Iterable[torch.Tensor],
    written: Iterable[torch.Tensor],
    flops: float = 0.0,
    dtype: torch.dtype | None = None,
) -> None:
    """Counts a kernel, see `count_kernel`.

    Raises:
        RuntimeError: A tensor is the host's, whose memory a kernel cannot reach.
    """
    read, written = list(read), list(written)
    on_host = [each for each in (*read, *written) if not device().holds(each)]
    if on_host:
        shapes = [tuple(each.shape) for each in on_host]
        raise RuntimeError(f"a kernel of Transformer Engine takes tensors of the host: {shapes}")
    count_kernel(device().ledger, read, written, flops, dtype)
