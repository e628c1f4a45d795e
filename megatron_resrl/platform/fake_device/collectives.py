"""Collectives of a rank whose peers do not exist: shapes, bytes sent, and numbers where known."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import FakeWork
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._pytree import tree_flatten

from megatron_resrl.platform.fake_device.lines import origin

if TYPE_CHECKING:
    from megatron_resrl.platform.fake_device.device import FakeDevice

_NAMES = {
    "allreduce_": "all_reduce",
    "allreduce_coalesced_": "all_reduce",
    "allgather_": "all_gather",
    "_allgather_base_": "all_gather",
    "allgather_into_tensor_coalesced_": "all_gather",
    "allgather_coalesced_": "all_gather",
    "reduce_scatter_": "reduce_scatter",
    "_reduce_scatter_base_": "reduce_scatter",
    "reduce_scatter_tensor_coalesced_": "reduce_scatter",
    "alltoall_base_": "all_to_all",
    "alltoall_": "all_to_all",
    "broadcast_": "broadcast",
    "reduce_": "reduce",
    "gather_": "gather",
    "scatter_": "scatter",
    "send": "send",
    "recv_": "recv",
    "recv_any_source_": "recv",
    "barrier": "barrier",
    "monitored_barrier_": "barrier",
}
"""torch's operation -> its name in a record."""
_GATHERS = ("allgather_", "_allgather_base_", "allgather_into_tensor_coalesced_")

Received = Callable[[torch.Tensor, int], torch.Tensor | None]
"""(tensor that is received into, rank in the group that sends) -> its numbers; None: unknown."""


class GroupNames:
    """Names of process groups in records."""

    def __init__(self) -> None:
        self._names: dict[str, str] = {}

    def name(self, group: dist.ProcessGroup, name: str) -> None:
        """Gives a group a name; the first one counts."""
        self._names.setdefault(group.group_name, name)

    def of(self, group: dist.ProcessGroup) -> str:
        """The name of a group; `world` for one that nobody has named."""
        return self._names.get(group.group_name, "world")


def run_collective(device: FakeDevice, func: Any, args: Any) -> Any:
    """Counts a collective and answers it as if every rank had this rank's numbers.

    Raises:
        RuntimeError: Tensors of the host go over the device's back end, which a GPU's refuses.
    """
    group = next(found for found in map(_as_group, args) if found is not None)
    schema = func._schema.name.removeprefix("c10d::")
    name, kind = _NAMES[schema], device.groups.of(group)
    tensors = [each for each in tree_flatten(args)[0] if isinstance(each, torch.Tensor)]
    on_host = [each for each in tensors if not device.holds(each)]
    if on_host and kind != "host" and name != "barrier":
        raise RuntimeError(
            f"{name} of a tensor of the host over the device's back end, at {origin().line}"
        )
    if group.size() > 1:
        sent = 0 if name == "barrier" else _sent(name, args, group)
        device.ledger.communicate(kind, group.size(), name, sent)
        if name == "barrier" and kind != "host":
            device.ledger.wait()
    _give_numbers(device, schema, args, group)
    work = FakeWork().boxed()
    return (args[0], work) if len(func._schema.returns) == 2 else work


def _sent(name: str, args: Any, group: dist.ProcessGroup) -> int:
    """Bytes that this rank sends, see `records.Traffic`."""
    ranks = group.size()
    # The first two arguments are tensors, or lists of them, written and read.
    sizes = [
        sum(each.nbytes for each in tree_flatten(side)[0] if isinstance(each, torch.Tensor))
        for side in args[:2]
    ]
    whole = max(sizes)
    if name == "recv":
        return 0
    if name in ("send", "broadcast"):
        return sizes[0]
    if name in ("gather", "scatter", "reduce"):
        return min(size for size in sizes if size) if name == "gather" else whole // ranks
    share = math.ceil(whole * (ranks - 1) / ranks)
    return 2 * share if name == "all_reduce" else share


def _give_numbers(device: FakeDevice, schema: str, args: Any, group: dist.ProcessGroup) -> None:
    """Numbers that are received, where they are known; else what is received has none."""
    numbers = device.numbers
    if schema == "recv_":
        given = device.received(args[0][0], args[2])
        _set(device, args[0][0], given)
    elif schema in _GATHERS:
        outputs = args[0] if isinstance(args[0], (list, tuple)) else [args[0]]
        inputs = args[1] if isinstance(args[1], (list, tuple)) else [args[1]]
        for out, own in zip(outputs, inputs, strict=True):
            known = numbers.of(own) if isinstance(own, FakeTensor) else own
            if isinstance(out, (list, tuple)):
                for each in out:
                    _set(device, each, known)
            else:
                tiled = None if known is None else known.flatten().repeat(group.size())
                _set(device, out, tiled)
    elif schema == "alltoall_base_":
        # What a rank gets from each is what it sends to itself.
        out, own = args[0], args[1]
        known = numbers.of(own) if isinstance(own, FakeTensor) else own
        same = known is not None and known.numel() == out.numel()
        _set(device, out, known if same else None)
    elif schema in ("_reduce_scatter_base_", "reduce_scatter_"):
        for each in tree_flatten(args[0])[0]:
            _set(device, each, None)


def _set(device: FakeDevice, out: torch.Tensor, known: torch.Tensor | None) -> None:
    if not isinstance(out, FakeTensor):
        if known is not None:
            out.copy_(known.view_as(out))
        return
    device.numbers.write(out, known)


def _as_group(value: Any) -> dist.ProcessGroup | None:
    if isinstance(value, torch.ScriptObject):
        with contextlib.suppress(RuntimeError, TypeError):
            return dist.ProcessGroup.unbox(value)
    return None
