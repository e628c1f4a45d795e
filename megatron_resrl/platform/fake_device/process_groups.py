"""Process groups of one rank alone: every peer is taken to have this rank's numbers and objects."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Mapping
from typing import Any

import torch.distributed as dist
from torch.testing._internal.distributed.fake_pg import FakeStore

from megatron_resrl.platform.fake_device.device import FakeDevice
from megatron_resrl.platform.fake_device.lines import caller

Objects = dict[tuple[str, str], Callable[[Mapping[str, Any]], Any]]
"""(file, function) -> (its local variables) -> what other ranks would send to it."""


def start_alone(
    device: FakeDevice, rank: int, world_size: int, *, gathered: Objects, broadcast: Objects
) -> None:
    """Starts torch.distributed as one rank of a job, for the rest of the process.

    Args:
        device: Counts the traffic.
        rank: Global rank.
        world_size: Of the job.
        gathered: The objects of all ranks that a function gathers; elsewhere all have this rank's.
        broadcast: The object that another rank broadcasts; elsewhere it is this rank's.
    """
    dist.init_process_group("fake", store=FakeStore(), rank=rank, world_size=world_size)
    new_group = dist.new_group

    def alone(
        ranks: Any = None, timeout: Any = None, backend: str | None = None, *args: Any, **rest: Any
    ) -> Any:
        group = new_group(ranks, backend="fake", use_local_synchronization=True)
        if backend == "gloo" and isinstance(group, dist.ProcessGroup):  # With this rank in it.
            device.groups.name(group, "host")
        return group

    def all_gather_object(object_list: list[Any], obj: Any, group: Any = None) -> None:
        size = dist.get_world_size(group)
        _note(device, "all_gather", size, len(pickle.dumps(obj)) * (size - 1))
        function, local = caller(gathered)
        object_list[:] = [obj] * size if function is None else gathered[function](local)

    def broadcast_object_list(
        object_list: list[Any], src: Any = None, group: Any = None, *args: Any, **rest: Any
    ) -> None:
        function, local = caller(broadcast)
        if src != rank and function is not None:
            object_list[:] = [broadcast[function](local)]
        _note(device, "broadcast", dist.get_world_size(group), len(pickle.dumps(object_list)))

    dist.new_group = dist.distributed_c10d.new_group = alone
    dist.all_gather_object = all_gather_object
    dist.broadcast_object_list = broadcast_object_list


def _note(device: FakeDevice, collective: str, size: int, sent: int) -> None:
    if size > 1:
        device.ledger.communicate("host", size, collective, sent)
