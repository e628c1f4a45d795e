"""The hosts of a job against each other: their GPUs and their clocks."""

from __future__ import annotations

import logging
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist

from megatron_resrl.errors import InputError
from megatron_resrl.platform.distributed import gather_objects
from megatron_resrl.platform.phases import named_phase
from megatron_resrl.platform.places import Place, own_place
from megatron_resrl.platform.skews import SKEW_S, clock_skews

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class RankReport:
    """What one rank says of its host."""

    place: Place
    gpu_name: str | None
    """As CUDA names it; None: the rank runs on a CPU."""
    clock: float
    """Seconds since 1970, asked for at the same moment on all ranks."""


def require_alike_hosts() -> None:
    """Ends all ranks where their GPUs differ; warns of clocks that differ. Collective.

    Raises:
        InputError: On all ranks.
    """
    if dist.get_world_size() == 1:
        return
    with named_phase("comparison of the hosts"):
        reports = gather_reports()
    if dist.get_rank() == 0:
        for note in clock_notes(reports):
            logger.warning("%s", note)
    if problem := gpu_problem(reports):
        error = InputError(problem)
        error.common = True
        raise error


def gather_reports() -> list[RankReport]:
    """The reports of all ranks, in their order. Collective."""
    name = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    gather_objects(None)  # Ranks arrive at different times, and leave together.
    clock = time.time()
    return gather_objects(RankReport(own_place(), name, clock))


def gpu_problem(reports: Sequence[RankReport]) -> str | None:
    """Why ranks on different GPUs cannot be one run; None: they are alike.

    Kernels differ between GPUs, and with them the numbers of replicas that must stay equal; the
    slowest and smallest GPU would hold up all.
    """
    first: dict[str | None, Place] = {}
    for report in reports:
        first.setdefault(report.gpu_name, report.place)
    if len(first) == 1:
        return None
    found = ", ".join(f"{name or 'no GPU'} on {place}" for name, place in first.items())
    return (
        f"the ranks have different GPUs: {found}; give all nodes of a job the same (under Slurm "
        "e.g. --gpus-per-node=h100:8 or --constraint)"
    )


def clock_notes(reports: Sequence[RankReport]) -> Iterator[str]:
    """A sentence for each host whose clock differs from the others'."""
    clocks: dict[str, list[float]] = {}
    for report in reports:
        clocks.setdefault(report.place.host, []).append(report.clock)
    of_hosts = {host: statistics.median(each) for host, each in clocks.items()}
    for host, skew in clock_skews(of_hosts).items():
        if abs(skew) > SKEW_S:
            way = "ahead of" if skew > 0 else "behind"
            yield (
                f"the clock of host {host} is {abs(skew):.0f} s {way} the other hosts': ages in "
                "messages, and which of two files is newer, may be wrong; let chrony or ntpd set it"
            )
