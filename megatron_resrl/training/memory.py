"""The memory of the ranks by phase, as metrics."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from megatron_resrl.platform.distributed import gather_numbers
from megatron_resrl.platform.memory_peaks import largest_resident_set

SAVE = "save"
"""The phase in which a checkpoint blocks training; it counts for the step after it."""


def memory_metrics(peaks: Mapping[str, int], phases: Sequence[str]) -> dict[str, float]:
    """`memory/...` of a step, on rank 0; nothing on the others. Collective.

    Args:
        peaks: Bytes of this rank by phase, from `PhaseTimers.take_peaks`; empty: unknown.
        phases: Those that are reported apart from the whole, the same on all ranks.
    """
    whole = max(peaks.values()) if peaks else largest_resident_set()
    of_ranks = gather_numbers([whole, *(peaks.get(name, 0) for name in phases)])
    return peak_metrics(of_ranks, phases) if of_ranks else {}


def peak_metrics(of_ranks: Sequence[Sequence[float]], phases: Sequence[str]) -> dict[str, float]:
    """The largest rank's memory, and which rank it is.

    Args:
        of_ranks: By rank, bytes of the whole step and of each phase; 0: it was not in the phase.
        phases: Names of the phases.
    """
    largest = max(range(len(of_ranks)), key=lambda rank: of_ranks[rank][0])
    metrics = {"memory/peak_bytes": of_ranks[largest][0], "memory/rank": float(largest)}
    for number, name in enumerate(phases, start=1):
        peak = max(each[number] for each in of_ranks)
        if peak:
            metrics[f"memory/{name}_peak_bytes"] = peak
    return metrics
