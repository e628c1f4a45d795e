"""Puts the device in the place of CUDA, for the rest of the process."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from megatron_resrl.platform.fake_device.cuda import Properties, answer_for_cuda
from megatron_resrl.platform.fake_device.device import FakeDevice, register_device
from megatron_resrl.platform.fake_device.engine.attached import attach
from megatron_resrl.platform.fake_device.lines import KindRule
from megatron_resrl.platform.fake_device.names import CudaNames
from megatron_resrl.platform.fake_device.process_groups import Objects, start_alone


@contextmanager
def fake_device(
    rank: int,
    world_size: int,
    *,
    rules: Sequence[KindRule] = (),
    gathered: Objects | None = None,
    broadcast: Objects | None = None,
    properties: Properties | None = None,
    fused: bool = True,
) -> Iterator[FakeDevice]:
    """The device while the block runs. What torch.cuda and torch.distributed answer stays changed
    after it: use a process of its own.

    Args:
        rank: Which rank of the job this process stands for.
        world_size: Of the job.
        rules: Say what the memory is that a piece of code takes.
        gathered: See `start_alone`.
        broadcast: See `start_alone`.
        properties: Of the device; default: an H100's.
        fused: See `CudaNames`; without it kernels have no workspaces either.
    """
    device = FakeDevice(register_device(), rules)
    device.workspaces = fused
    attach(device)
    answer_for_cuda(device, properties or Properties())
    start_alone(device, rank, world_size, gathered=gathered or {}, broadcast=broadcast or {})
    names = CudaNames(device, fused=fused)
    _name_in_backward(names)
    with names, device:
        yield device


def _name_in_backward(names: CudaNames) -> None:
    """Backward passes name CUDA, too; torch starts them outside of function modes."""
    run = torch.autograd._engine_run_backward

    def with_names(*args: Any, **kwargs: Any) -> Any:
        with names:
            return run(*args, **kwargs)

    torch.autograd._engine_run_backward = with_names
