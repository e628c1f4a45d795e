"""What torch.cuda answers about the device, and modules that move to it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.cuda.nvtx
from torch._subclasses.fake_tensor import FakeTensor

from megatron_resrl.platform.fake_device.device import FakeDevice
from megatron_resrl.platform.one_queue import answer_streams

_RANDOM_STATE_BYTES = 16


@dataclass(frozen=True)
class Properties:
    """Of the device that is stood for."""

    name: str = "NVIDIA H100 80GB HBM3"
    major: int = 9
    minor: int = 0
    total_memory: int = 80 << 30
    multi_processor_count: int = 132


def answer_for_cuda(device: FakeDevice, properties: Properties) -> None:
    """Redirects torch.cuda to the device, for the rest of the process."""
    cuda = torch.cuda
    cuda.is_available = lambda: True
    cuda.device_count = lambda: 8
    cuda.current_device = lambda: 0
    cuda.set_device = lambda index: None
    cuda.get_device_capability = lambda *args: (properties.major, properties.minor)
    cuda.get_device_name = lambda *args: properties.name
    cuda.get_device_properties = lambda *args: properties
    cuda.is_current_stream_capturing = lambda: False
    cuda.synchronize = lambda *args, **options: device.ledger.wait()
    cuda.empty_cache = lambda: None
    cuda.memory_allocated = lambda *args: device.memory.total
    cuda.max_memory_allocated = lambda *args: device.memory.peak
    cuda.reset_peak_memory_stats = lambda *args: device.memory.start_peak()
    cuda.nvtx.range_push = cuda.nvtx.range_pop = lambda *args, **options: 0
    _answer_random_state()
    answer_streams(lambda: device.ledger.wait())
    torch.nn.Module.cuda = lambda self, *args, **options: self.to(device.device)
    torch.nn.Module._apply = _apply
    # One copy, where FakeTensorMode reads one number at a time.
    FakeTensor.tolist = lambda self: self.cpu().tolist()
    FakeTensor.is_cuda = property(device.holds)


def _answer_random_state() -> None:
    """The device draws no numbers, and has a state without meaning."""
    from megatron.core.tensor_parallel import random as tracker

    state = torch.zeros(_RANDOM_STATE_BYTES, dtype=torch.uint8)
    torch.cuda.manual_seed = torch.cuda.manual_seed_all = lambda seed: None
    torch.cuda.get_rng_state = lambda *args, **options: state
    torch.cuda.set_rng_state = lambda *args, **options: None
    tracker._get_cuda_rng_state = torch.cuda.get_rng_state
    tracker._set_cuda_rng_state = torch.cuda.set_rng_state


def _apply(
    self: torch.nn.Module, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True
) -> torch.nn.Module:
    """`Module._apply` that makes new parameters, with the marks of the old ones.

    torch would swap tensors of FakeTensorMode in place, which their hooks forbid.
    """
    for child in self.children() if recurse else ():
        child._apply(fn)
    for name, parameter in self._parameters.items():
        if parameter is None:
            continue
        with torch.no_grad():
            moved = fn(parameter)
        if moved is not parameter and moved is not parameter.data:
            new = torch.nn.Parameter(moved, parameter.requires_grad)
            for mark, value in vars(parameter).items():
                if mark not in vars(new):
                    setattr(new, mark, value)
            self._parameters[name] = new
    for name, buffer in self._buffers.items():
        if buffer is not None:
            self._buffers[name] = fn(buffer)
    return self
