"""megatron-core's torch_dist format, written by the calling process itself."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as torch_checkpoint
from megatron.core.dist_checkpointing.mapping import ShardedTensor
from megatron.core.dist_checkpointing.strategies.async_utils import AsyncRequest
from megatron.core.dist_checkpointing.strategies.torch import (
    MCoreSavePlanner,
    TorchDistSaveShardedStrategy,
    _replace_state_dict_keys_with_sharded_keys,
    mcore_to_pyt_state_dict,
)
from torch.distributed.checkpoint.planner import (
    SavePlan,
    SavePlanner,
    WriteItem,
    WriteItemType,
)
from torch.distributed.checkpoint.storage import WriteResult
from torch.utils.serialization import config as serialization

from megatron_resrl.checkpoint.checksums import ChecksumWriter
from megatron_resrl.checkpoint.host_copies import HostMemory, host_copies, in_own_storage
from megatron_resrl.platform.megatron_versions import take_common_state
from megatron_resrl.weights.torch_dist_files import COMMON_FILE


class _OnceWriter(ChecksumWriter):
    """Writes what several tensors share once; the index names its place for each of them.

    fp32 weights are their own masters, a quarter of the state.
    """

    def write_data(
        self, plan: SavePlan, planner: SavePlanner
    ) -> torch.futures.Future[list[WriteResult]]:
        """Writes this rank's part of the plan."""
        firsts: dict[Any, WriteItem] = {}
        again: list[tuple[WriteItem, WriteItem]] = []
        items = []
        for item in plan.items:
            first = firsts.setdefault(_content(item, planner), item)
            if first is item:
                items.append(item)
            else:
                again.append((item, first))
        results = super().write_data(replace(plan, items=items), planner).wait()
        places = {result.index: result for result in results}
        results += [replace(places[first.index], index=item.index) for item, first in again]
        done: torch.futures.Future[list[WriteResult]] = torch.futures.Future()
        done.set_result(results)
        return done


def _content(item: WriteItem, planner: SavePlanner) -> Any:
    """Equal for items whose bytes are the same memory, read in the same way."""
    if item.type != WriteItemType.BYTE_IO:
        tensor = planner.resolve_data(item)
        if isinstance(tensor, torch.Tensor) and tensor.numel():
            return tensor.device, tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride()
    return item.index


class InProcessSaveStrategy(TorchDistSaveShardedStrategy):
    """Same files as megatron-core's default strategy, without its helper processes.

    The default forks a writer per file and spawns a manager process that imports the main script
    again, which takes seconds however little there is to write.
    """

    def __init__(
        self,
        group: dist.ProcessGroup | None,
        live: frozenset[int] | None,
        memory: HostMemory | None = None,
    ) -> None:
        """
        Args:
            group: Ranks agree over it while they write; None: over the default group. A thread
                needs one of its own.
            live: Storages (`data_ptr`) that training goes on to change; a tensor in one of them,
                or on a device, is copied to host memory, in the order of the device's work: neither
                the caller nor the device waits. None: nothing is copied, the caller waits.
            memory: For the copies; None: new memory.
        """
        super().__init__("torch_dist", 1)
        self.group = group
        self.live = live
        self.memory = memory

    def async_save(
        self, sharded_state_dict: dict[str, Any], checkpoint_dir: Path, async_strategy: str = ""
    ) -> AsyncRequest:
        """Fixes this rank's part of the state.

        Args:
            sharded_state_dict: megatron-core's.
            checkpoint_dir: Of the checkpoint.
            async_strategy: Name of a background writer of megatron-core's; not used.

        Returns:
            A request whose `async_fn` writes it, synced to disk, and returns the digests of this
            rank's files; rank 0 writes the index.
        """
        common = take_common_state(sharded_state_dict)
        if common is not None and dist.get_rank() == 0:
            torch.save(common, Path(checkpoint_dir) / COMMON_FILE)
        parts, _, _ = _replace_state_dict_keys_with_sharded_keys(
            sharded_state_dict, self.keep_only_main_replica
        )
        copied = _fix(
            [
                part
                for several in parts.values()
                for part in several
                if isinstance(part, ShardedTensor)
            ],
            self.live,
            self.memory,
        )
        # Objects are pickled here.
        state = mcore_to_pyt_state_dict(parts, is_loading=False)
        return AsyncRequest(self._write, (state, checkpoint_dir, copied), [])

    def _write(
        self, state: dict[str, Any], checkpoint_dir: Path, copied: torch.cuda.Event | None
    ) -> dict[str, str]:
        if copied is not None:
            copied.synchronize()
        writer = _OnceWriter(checkpoint_dir)
        # The checksums of whole files cover what torch's of each tensor would, which nobody reads.
        with serialization.patch("save.compute_crc32", False):  # type: ignore[attr-defined]
            torch_checkpoint.save(
                state,
                storage_writer=writer,
                planner=MCoreSavePlanner(flatten_state_dict=False),
                process_group=self.group,
            )
        return writer.digests


def _fix(
    parts: list[ShardedTensor], live: frozenset[int] | None, memory: HostMemory | None
) -> torch.cuda.Event | None:
    """Gives the parts tensors that training does not change, without another copy of any.

    Args:
        parts: Of this rank.
        live: See `InProcessSaveStrategy`.
        memory: See `InProcessSaveStrategy`.

    Returns:
        What the device does once the copies are there; None: they are.
    """
    if live is not None:
        changing = [part for part in parts if not part.data.is_cpu or storage_of(part.data) in live]
        copies = host_copies([part.data for part in changing], memory)
        for part, copy in zip(changing, copies, strict=True):
            part.data = copy
    for part in parts:
        if part.data.is_cpu:
            part.data = in_own_storage(part.data)
    if live is None or not torch.cuda.is_available():
        return None
    copied = torch.cuda.Event()
    copied.record()
    return copied


def storage_of(tensor: torch.Tensor) -> int:
    """Key by which `InProcessSaveStrategy` identifies a storage."""
    return tensor.untyped_storage().data_ptr()
