"""Ranks and their groups: start, stop, seeds, and collectives that name the phase they hang in."""

from __future__ import annotations

import contextlib
import datetime
import os
import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from megatron_resrl.config.schema import ParallelConfig
from megatron_resrl.platform.cpu import adapt_megatron_core

_LOST_PEER = (
    *("Timed out", "timed out", "wait timeout"),
    *("Connection closed by peer", "Connection reset by peer", "Broken pipe"),
)
"""What gloo, NCCL and the store say when another rank does not answer."""


class CollectiveTimeout(RuntimeError):
    """A rank did not arrive at a collective in time; the message names the phase and the rank."""


def device() -> torch.device:
    """The device of this rank's tensors."""
    if torch.cuda.is_available():
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("cpu")


def initialize(parallel: ParallelConfig, seed: int) -> None:
    """Starts the process groups and seeds every generator.

    gloo on CPU, NCCL on CUDA. A single process without a launcher needs no environment.

    Args:
        parallel: Layout; must divide the world size (checked before, see `config.checks`).
        seed: Of megatron-core's tensor-parallel random tracker and the global generators.
    """
    adapt_megatron_core()
    from megatron.core import parallel_state
    from megatron.core.tensor_parallel.random import model_parallel_cuda_manual_seed

    if not dist.is_initialized():
        timeout = datetime.timedelta(minutes=parallel.timeout_minutes)
        if torch.cuda.is_available():
            torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
        backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
        launched = "RANK" in os.environ
        store = {} if launched else {"store": dist.HashStore(), "rank": 0, "world_size": 1}
        with named_phase("start of the process group"):
            dist.init_process_group(backend, timeout=timeout, **store)
    parallel_state.destroy_model_parallel()
    parallel_state.initialize_model_parallel(
        tensor_model_parallel_size=parallel.tensor_model_parallel_size,
        pipeline_model_parallel_size=parallel.pipeline_model_parallel_size,
        virtual_pipeline_model_parallel_size=parallel.virtual_pipeline_model_parallel_size,
        context_parallel_size=parallel.context_parallel_size,
        expert_model_parallel_size=parallel.expert_model_parallel_size,
        expert_tensor_parallel_size=parallel.expert_tensor_parallel_size,
        distributed_timeout_minutes=parallel.timeout_minutes,
    )
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
    model_parallel_cuda_manual_seed(seed)


def shutdown() -> None:
    """Ends the process groups."""
    from megatron.core import parallel_state

    parallel_state.destroy_model_parallel()
    if dist.is_initialized():
        dist.destroy_process_group()


@contextlib.contextmanager
def named_phase(name: str) -> Iterator[None]:
    """Turns a collective's time-out or a lost peer inside the block into an error that names it.

    Raises:
        CollectiveTimeout: With the phase, this rank, and what the backend said.
    """
    try:
        yield
    except CollectiveTimeout:
        raise
    except RuntimeError as error:
        said = str(error)
        if any(words in said for words in _LOST_PEER):
            rank = os.environ.get("RANK", "0")
            raise CollectiveTimeout(
                f"phase {name!r}, rank {rank}: another rank did not take part in a collective "
                f"within parallel.timeout_minutes or has died ({said.splitlines()[0]})"
            ) from error
        raise


def broadcast_object(value: Any, source: int = 0, group: dist.ProcessGroup | None = None) -> Any:
    """Gives every rank of `group` the picklable value of global rank `source`."""
    box = [value]
    dist.broadcast_object_list(box, src=source, group=group)
    return box[0]


def gather_objects(value: Any, group: dist.ProcessGroup | None = None) -> list[Any]:
    """Every rank's picklable value, in rank order, on every rank of `group`."""
    values: list[Any] = [None] * dist.get_world_size(group)
    dist.all_gather_object(values, value, group=group)
    return values


def any_rank(flag: bool, group: dist.ProcessGroup | None = None) -> bool:
    """Whether `flag` is true on at least one rank; the same answer everywhere."""
    tensor = torch.tensor(float(flag), device=device())
    dist.all_reduce(tensor, op=dist.ReduceOp.MAX, group=group)
    return bool(tensor.item())


def largest(value: int, group: dist.ProcessGroup | None = None) -> int:
    """The largest `value` of all ranks of `group`; the same answer everywhere."""
    tensor = torch.tensor(value, device=device())
    dist.all_reduce(tensor, op=dist.ReduceOp.MAX, group=group)
    return int(tensor.item())
