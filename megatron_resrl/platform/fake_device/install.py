"""Puts the device in the place of CUDA, for the rest of the process."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from megatron_resrl.platform.fake_device.cuda import Properties, answer_for_cuda
from megatron_resrl.platform.fake_device.device import FakeDevice, register_device
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
        fused: See `CudaNames`.
    """
    device = FakeDevice(register_device(), rules)
    answer_for_cuda(device, properties or Properties())
    start_alone(device, rank, world_size, gathered=gathered or {}, broadcast=broadcast or {})
    names = CudaNames(device, fused=fused)
    _name_in_recomputation(names)
    with names, device:
        yield device


def _name_in_recomputation(names: CudaNames) -> None:
    """Layers that are run again run in the backward pass, whose threads know no function mode."""
    from megatron.core.tensor_parallel.random import CheckpointFunction

    backward = CheckpointFunction.backward

    def with_names(ctx: Any, *gradients: Any) -> Any:
        with names:
            return backward(ctx, *gradients)

    CheckpointFunction.backward = staticmethod(with_names)
