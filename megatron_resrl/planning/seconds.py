"""Seconds of a phase from what a rank does in it.

A phase takes as long as its matrix products at the rate that they reach, its memory traffic at the
memory's rate, and its communication, one after the other; longer if the host cannot launch kernels
that fast; and then what the host waits and copies. Pipelined phases take longer by the pipeline's
bubble.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from megatron_resrl.config.schema import ParallelConfig
from megatron_resrl.planning.links import Cluster, traffic_seconds
from megatron_resrl.planning.records import PhaseRecord

LAUNCH_S = 6e-6
"""Seconds of the host for a kernel that PyTorch starts in eager mode; an assumption."""

KERNELS_PER_LAYER = 25
"""Kernels of a layer's forward pass, about, where nobody has counted them."""

WAIT_S = 30e-6
"""Seconds that the device stands idle when the host has waited for it; an assumption: the time to
notice, and to launch the next few kernels."""

PIPELINED = ("scoring", "update")
"""Phases whose micro-batches go through the pipeline."""


@dataclass(frozen=True)
class Pipeline:
    """How micro-batches go through the stages."""

    stages: int = 1
    chunks: int = 1
    """Virtual stages of a rank."""
    micro_batches: int = 1
    """Between two points at which the pipeline is empty."""

    @property
    def bubble(self) -> float:
        """Idle time as a share of the work: (p - 1) / (v m), Megatron-LM (arXiv 2104.04473)."""
        return (self.stages - 1) / (self.chunks * self.micro_batches)


@dataclass(frozen=True)
class PhaseSeconds:
    """Of one phase on one rank."""

    name: str
    matrix: float
    memory: float
    wires: Mapping[str, float]
    """`nvlink`, `network` and `host`; what is not hidden behind computation."""
    launches: float
    """By which launching takes longer than the device."""
    waits: float
    copies: float
    bubble: float

    @property
    def total(self) -> float:
        """All parts."""
        return (
            self.matrix
            + self.memory
            + sum(self.wires.values())
            + self.launches
            + self.waits
            + self.copies
            + self.bubble
        )


def phase_seconds(
    record: PhaseRecord, parallel: ParallelConfig, cluster: Cluster, pipeline: Pipeline
) -> PhaseSeconds:
    """How long a rank takes for a phase.

    Args:
        record: Counts of the whole phase.
        parallel: Layout; with `parallel.ddp.overlap_grad_reduce` or `overlap_param_gather`, traffic
            of data parallelism is hidden behind computation.
        cluster: Rates, and where ranks are.
        pipeline: Ignored by phases that are not pipelined.
    """
    gpu = cluster.gpu
    flops = record.matrix_flops.items()
    matrix = sum(count / gpu.matrix_rate(dtype) for dtype, count in flops)
    memory = record.touched_bytes / gpu.memory_rate
    wires = dict.fromkeys(("nvlink", "network", "host"), 0.0)
    hidden = 0.0
    for traffic in record.traffic:
        wire, seconds = traffic_seconds(traffic, parallel, cluster)
        if record.name == "update" and _overlaps(traffic.group, traffic.collective, parallel):
            hidden += seconds
        else:
            wires[wire] += seconds
    computing = matrix + memory
    wires["network"] += max(0.0, hidden - computing)
    device = computing + sum(wires.values())
    busy = max(device, record.kernels * LAUNCH_S)
    waits = sum(wait.count for wait in record.waits) * WAIT_S
    copies = record.host_copy_bytes / gpu.host_link
    pipelined = record.name in PIPELINED
    return PhaseSeconds(
        name=record.name,
        matrix=matrix,
        memory=memory,
        wires=wires,
        launches=busy - device,
        waits=waits,
        copies=copies,
        bubble=(busy + waits) * pipeline.bubble if pipelined else 0.0,
    )


def _overlaps(group: str, collective: str, parallel: ParallelConfig) -> bool:
    if group not in ("data", "expert_data"):
        return False
    setting = "overlap_param_gather" if "gather" in collective else "overlap_grad_reduce"
    return bool(parallel.ddp.get(setting, False))


def slowest(ranks: Mapping[str, list[PhaseSeconds]]) -> dict[str, tuple[str, PhaseSeconds]]:
    """Of each phase, the rank that takes longest: a phase ends when its last rank does.

    Args:
        ranks: Seconds of phases, by role of the rank.

    Returns:
        Role and seconds by name of the phase, in the phases' order.
    """
    found: dict[str, tuple[str, PhaseSeconds]] = {}
    for role, phases in ranks.items():
        for phase in phases:
            if phase.name not in found or phase.total > found[phase.name][1].total:
                found[phase.name] = (role, phase)
    return found
