"""Ranks and their groups: start, stop, seeds, and small collectives."""

from __future__ import annotations

import contextlib
import datetime
import os
import random
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar, cast

import numpy as np
import torch
import torch.distributed as dist
from torch.distributed.rendezvous import rendezvous

from megatron_resrl.config.schema import ParallelConfig
from megatron_resrl.errors import InputError, RunError, RunFileError
from megatron_resrl.platform.cpu import adapt_megatron_core
from megatron_resrl.platform.ending import Deadline
from megatron_resrl.platform.launch import device_of, require_meeting_place
from megatron_resrl.platform.meetings import meeting
from megatron_resrl.platform.phases import named_phase, start_heartbeat, stop_heartbeat
from megatron_resrl.platform.places import own_place

Result = TypeVar("Result")

_object_group: dist.ProcessGroup | None = None
"""All ranks, over gloo: Python objects need not pass through a GPU."""

_job_store: dist.Store | None = None

_LARGEST_MARGIN_S = 60.0
"""Longest time between a collective's time-out and the end of a rank that is stuck."""

_TRACKER_OFFSETS = 2**16
"""megatron-core adds less to a seed: some thousands, and the tensor- and expert-parallel rank."""


def device() -> torch.device:
    """The device of this rank's tensors."""
    if torch.cuda.is_available():
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("cpu")


def on_device(tensor: torch.Tensor, place: torch.device | str) -> torch.Tensor:
    """A tensor of the host on `place`; the host does not wait for the device.

    From memory that is not pinned the copy would wait for what the device has queued.
    """
    if torch.device(place).type == "cuda":
        tensor = tensor.pin_memory()
    return tensor.to(place, non_blocking=True)


def on_device_together(
    tensors: Mapping[str, torch.Tensor], place: torch.device | str
) -> dict[str, torch.Tensor]:
    """Named tensors of the host on `place`, see `on_device`: one copy for all of one number format.

    Args:
        tensors: Any shapes; those that are on a device already are returned as they are.
        place: Device.

    Returns:
        In the order of `tensors`; those that were copied share their memory.
    """
    moved = dict(tensors)
    stays = torch.device(place).type == "cpu"
    absent = [] if stays else [name for name, each in tensors.items() if each.is_cpu]
    for dtype in {tensors[name].dtype: None for name in absent}:
        names = [name for name in absent if tensors[name].dtype == dtype]
        parts = [tensors[name].flatten() for name in names]
        copied = on_device(torch.cat(parts), place).split([len(part) for part in parts])
        moved |= {
            name: part.view_as(tensors[name]) for name, part in zip(names, copied, strict=True)
        }
    return moved


@contextlib.contextmanager
def process_groups(parallel: ParallelConfig, seed: int) -> Iterator[None]:
    """Starts the process groups, see `initialize`, and ends them with the block.

    A connection that hangs while it is closed does not keep the process alive, see `Deadline`.
    """
    deadline = Deadline()
    initialize(parallel, seed)
    try:
        yield
    finally:
        deadline.start(sys.exc_info()[1])
        shutdown()
        deadline.cancel()


def initialize(parallel: ParallelConfig, seed: int) -> None:
    """Starts the process groups and seeds every generator.

    gloo on CPU, NCCL on CUDA; Python objects of the whole job go over one gloo group in both cases.
    A single process without a launcher needs no environment.

    Args:
        parallel: Layout; must divide the world size (checked before, see `checks`).
        seed: Of the global generators and megatron-core's random tracker, which draws dropout
            masks. Each pipeline stage adds 100 per stage, as Megatron-LM does.

    Raises:
        InputError: The ranks cannot meet: the port is taken, or this host has fewer GPUs than
            ranks.
    """
    adapt_megatron_core()
    from megatron.core import parallel_state
    from megatron.core.tensor_parallel.random import model_parallel_cuda_manual_seed

    if not dist.is_initialized():
        timeout = datetime.timedelta(minutes=parallel.timeout_minutes)
        gpu = None
        if torch.cuda.is_available():
            gpu = torch.device("cuda", device_of(os.environ, torch.cuda.device_count()))
            torch.cuda.set_device(gpu)
        with named_phase("start of the process group"):
            store, rank, world_size = _rendezvous(timeout)
            # The prefix that torch itself uses for a store of its own.
            prefixed = dist.PrefixStore("default_pg", store)
            # No gloo beside NCCL: megatron-core's groups inherit the backends, and gloo would open
            # connections between all ranks of each group.
            dist.init_process_group(
                "gloo" if gpu is None else "nccl",
                timeout=timeout,
                store=prefixed,
                rank=rank,
                world_size=world_size,
                device_id=gpu,
            )
            start_heartbeat(
                store, rank, world_size, _stuck_after_s(timeout, on_gpu=gpu is not None)
            )
            global _object_group, _job_store
            _object_group = dist.new_group(backend="gloo", timeout=timeout)
            _job_store = store
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
    seed += 100 * parallel_state.get_pipeline_model_parallel_rank()
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed % 2**64)
    model_parallel_cuda_manual_seed(seed % (2**63 - _TRACKER_OFFSETS))


def _stuck_after_s(timeout: datetime.timedelta, *, on_gpu: bool) -> float:
    """Seconds without progress after which a rank is ended.

    With NCCL, less than the time-out: NCCL's own watchdog would abort the process without naming a
    rank. With gloo, more than the time-out, after which the collective should have raised.
    """
    seconds = timeout.total_seconds()
    margin = min(_LARGEST_MARGIN_S, seconds / 4)
    return seconds - margin if on_gpu else seconds + margin


def _rendezvous(timeout: datetime.timedelta) -> tuple[dist.Store, int, int]:
    """The job's store, this rank and the number of ranks: as the launcher says, or alone."""
    if "RANK" not in os.environ:
        return dist.HashStore(), 0, 1
    require_meeting_place(os.environ)  # The command line has checked it; other callers have not.
    try:
        store, rank, world_size = next(iter(rendezvous("env://", timeout=timeout)))
    except dist.DistNetworkError as error:
        if "EADDRINUSE" not in str(error):
            raise
        raise InputError(
            f"MASTER_PORT = {os.environ['MASTER_PORT']}: another process on this host listens "
            "there; choose another port, the same for all ranks (torchrun --master-port, or none "
            "with --standalone)"
        ) from error
    store.set_timeout(timeout)
    return store, rank, world_size


def job_store() -> dist.Store:
    """A new connection to the store in which the ranks of a job met, see `initialize`."""
    assert _job_store is not None, "the process groups have not been started"
    return _job_store.clone()  # type: ignore[attr-defined]  # torch's stub lacks it


def shutdown() -> None:
    """Ends the process groups."""
    from megatron.core import parallel_state

    global _object_group, _job_store
    stop_heartbeat()
    _object_group = _job_store = None
    parallel_state.destroy_model_parallel()
    if dist.is_initialized():
        dist.destroy_process_group()


def broadcast_object(value: Any, source: int = 0, group: dist.ProcessGroup | None = None) -> Any:
    """Gives every rank of `group` the picklable value of global rank `source`."""
    box = [value]
    with meeting():
        dist.broadcast_object_list(box, src=source, group=group or _object_group)
    return box[0]


def gather_objects(value: Any, group: dist.ProcessGroup | None = None) -> list[Any]:
    """Every rank's picklable value, in rank order, on every rank of `group`."""
    values: list[Any] = [None] * dist.get_world_size(group)
    with meeting():
        dist.all_gather_object(values, value, group=group or _object_group)
    return values


def gather_numbers(values: Sequence[float]) -> list[list[float]]:
    """Every rank's numbers in rank order, on rank 0; on the others nothing. Collective.

    Args:
        values: As many on all ranks.
    """
    own = torch.tensor(values, dtype=torch.float64)
    first = dist.get_rank() == 0
    gathered = [torch.empty_like(own) for _ in range(dist.get_world_size())] if first else None
    with meeting():
        dist.gather(own, gathered, dst=0, group=_object_group)
    return [each.tolist() for each in gathered or ()]


def run_on_rank_zero(
    action: Callable[[], Result],
    group: dist.ProcessGroup | None = None,
    *,
    file_error: type[RunError] = RunFileError,
) -> Result:
    """Runs `action` on global rank 0; all ranks of `group` get its result, or raise its error.

    For files, which one rank handles for all.

    Args:
        action: Its result can be pickled.
        group: With rank 0; None: all ranks.
        file_error: Raised for an `OSError` of the action.

    Raises:
        RunError, InputError: The action raised it.
    """
    result, error = None, None
    if dist.get_rank() == 0:
        try:
            result = action()
        except (RunError, InputError) as problem:
            error = problem
        except OSError as problem:
            error = file_error(f"a file of the run cannot be written or read: {problem}")
    result, error = broadcast_object((result, error), group=group)
    if error is not None:
        error.common = True
        raise error
    return result


def run_on_every_rank(action: Callable[[], Result]) -> Result:
    """Runs `action` on each rank and returns this rank's result. Collective.

    Raises:
        InputError: On all ranks alike, if the action raised one on any rank; different messages
            are joined, each with the first rank that raised it and the place of that rank.
    """
    result, problem = None, None
    try:
        result = action()
    except InputError as refusal:
        problem = str(refusal)
    outcomes = gather_objects((own_place(), problem))
    # Message -> the first rank that raised it, as earlier ranks replace later ones.
    first_rank = {
        message: f"{place}: " for place, message in reversed(outcomes) if message is not None
    }
    if first_rank:
        several = len(outcomes) > 1
        error = InputError(
            "\n".join((rank if several else "") + message for message, rank in first_rank.items())
        )
        error.common = True
        raise error
    return cast(Result, result)


def any_rank(flag: bool, group: dist.ProcessGroup | None = None) -> bool:
    """Whether `flag` is true on at least one rank; the same answer everywhere."""
    tensor = torch.full((), float(flag), device=device())
    with meeting():
        dist.all_reduce(tensor, op=dist.ReduceOp.MAX, group=group)
        return bool(tensor.item())


def max_over_ranks(value: int, group: dist.ProcessGroup | None = None) -> int:
    """The largest `value` of all ranks of `group`; the same answer everywhere."""
    tensor = torch.full((), value, dtype=torch.int64, device=device())
    with meeting():
        dist.all_reduce(tensor, op=dist.ReduceOp.MAX, group=group)
        return int(tensor.item())


def sum_over_ranks(tensor: torch.Tensor, group: dist.ProcessGroup) -> torch.Tensor:
    """Sum of every rank's tensor, differentiable. Collective, forward and backward.

    The loss is the sum of all ranks' losses: a tensor's gradient is the sum over the ranks of their
    losses' gradients with respect to the result.

    Args:
        tensor: Same shape and dtype on all ranks.
        group: The ranks.

    Returns:
        The same on all ranks; the tensor itself in a group of one rank.
    """
    return tensor if dist.get_world_size(group) == 1 else _SumOverRanks.apply(tensor, group)


class _SumOverRanks(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: torch.Tensor, group: dist.ProcessGroup) -> torch.Tensor:
        ctx.group = group
        total = tensor.clone()
        dist.all_reduce(total, group=group)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        total = gradient.clone()
        dist.all_reduce(total, group=ctx.group)
        return total, None
