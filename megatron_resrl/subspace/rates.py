"""What a rank can do: rates of an H100 from its data sheet, or measured where the pass runs."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.distributed as dist

# Columns of the square product, and float32 values copied, to measure a GPU and a CPU.
MEASURED_CUDA = (4096, 1 << 25)
MEASURED_CPU = (256, 1 << 22)


@dataclass(frozen=True)
class MachineRates:
    """What one rank can do, as far as it matters to the pass."""

    float32_flops: float
    """Float32 matrix product, operations per second."""
    float64_flops: float
    """Float64 matrix product, operations per second."""
    memory_bandwidth: float
    """Bytes per second read plus written."""
    link_bandwidth: float
    """Bytes per second that a rank sends while all ranks do."""
    latency: float
    """Seconds of a collective that carries next to nothing."""
    column_latency: float
    """Seconds per column of a small float64 eigen-decomposition, whose columns wait for each
    other."""


# One H100 SXM among 8 of a node. Estimated, not run:
# float32_flops: two thirds of the data sheet's 67e12 without tensor cores.
# float64_flops: three quarters of the data sheet's 67e12 with tensor cores.
# memory_bandwidth: four fifths of the data sheet's 3.35e12.
# link_bandwidth: what NCCL is known to reach of NVLink's 450e9 in one direction.
# latency: a small NCCL collective over NVLink.
# column_latency: 352 columns by LAPACK on one CPU core (16.4 ms measured, alone or in a batch); a
#   GPU's solver is assumed to be no slower. 100 columns at a time took 18e-6 on one
#   (pytorch/pytorch#174674).
H100_NODE = MachineRates(45e12, 50e12, 2.7e12, 350e9, 20e-6, 47e-6)
# The same with ranks on different nodes: a 400 Gbit/s adapter per GPU (50e9) at four fifths, and
# the latency of a small collective over InfiniBand. Estimated, not run.
H100_CLUSTER = MachineRates(45e12, 50e12, 2.7e12, 40e9, 40e-6, 47e-6)


def measure_rates(
    device: torch.device | str, process_group: dist.ProcessGroup | None = None
) -> MachineRates:
    """Times small products, a copy, an eigen-decomposition and an all-gather on this machine.

    Takes tens of milliseconds after the first use of the device. With a group all its ranks have to
    call it; each rate is then the mean over the ranks, added in rank order, the same bits on all.

    Args:
        device: Where the pass runs.
        process_group: Ranks that exchange rows or matrices; None: one rank, which sends nothing.

    Returns:
        The rates, each rounded to a power of two: what is chosen by them should not change with
        the noise of a measurement. Without other ranks the link is infinitely fast.
    """
    device = torch.device(device)
    size, copied = MEASURED_CUDA if device.type == "cuda" else MEASURED_CPU
    source = torch.ones(copied, dtype=torch.float32, device=device)
    target = torch.empty_like(source)
    order = torch.arange(1.0, 129.0, dtype=torch.float64, device=device)
    small = torch.minimum(order, order[:, None])  # No two eigenvalues alike: nothing is skipped.
    local = [
        _product_rate(size, torch.float32, device),
        _product_rate(size, torch.float64, device),
        2 * source.nbytes / _best_seconds(lambda: target.copy_(source), device),
        *_link_rates(source[: copied // 4], process_group),
        _best_seconds(lambda: torch.linalg.eigh(small), device) / len(small),
    ]
    return MachineRates(*map(rounded, _rank_mean(local, device, process_group)))


def rounded(rate: float) -> float:
    """The power of two whose logarithm is nearest; 0 and infinity stay."""
    return rate if rate == 0 or math.isinf(rate) else 2.0 ** round(math.log2(rate))


def _best_seconds(work: Callable[[], object], device: torch.device) -> float:
    """Shortest of three runs after one that warms up."""
    seconds = []
    for _ in range(4):
        _wait(device)
        start = time.perf_counter()
        work()
        _wait(device)
        seconds.append(time.perf_counter() - start)
    return min(seconds[1:])


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _product_rate(size: int, dtype: torch.dtype, device: torch.device) -> float:
    matrix = torch.ones(size, size, dtype=dtype, device=device)
    return 2 * size**3 / _best_seconds(lambda: matrix @ matrix, device)


def _link_rates(
    tensor: torch.Tensor, process_group: dist.ProcessGroup | None
) -> tuple[float, float]:
    """Bytes per second sent by a rank, and seconds of a tiny collective."""
    if process_group is None or dist.get_world_size(process_group) == 1:
        return math.inf, 0.0
    others = dist.get_world_size(process_group) - 1
    latency = _gather_seconds(tensor[:1], process_group)
    seconds = _gather_seconds(tensor, process_group)
    return others * tensor.nbytes / max(seconds - latency, 1e-3 * seconds), latency


def _gather_seconds(tensor: torch.Tensor, process_group: dist.ProcessGroup) -> float:
    ranks = dist.get_world_size(process_group)
    gathered = list(tensor.new_empty((ranks, *tensor.shape)).unbind(0))
    return _best_seconds(
        lambda: dist.all_gather(gathered, tensor, group=process_group), tensor.device
    )


def _rank_mean(
    values: list[float], device: torch.device, process_group: dist.ProcessGroup | None
) -> list[float]:
    if process_group is None or dist.get_world_size(process_group) == 1:
        return values
    local = torch.tensor(values, dtype=torch.float64, device=device)
    ranks = dist.get_world_size(process_group)
    gathered = [torch.empty_like(local) for _ in range(ranks)]
    dist.all_gather(gathered, local, group=process_group)
    return (sum(gathered[1:], gathered[0]) / ranks).tolist()
