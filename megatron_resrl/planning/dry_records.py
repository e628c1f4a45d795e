"""The distinct ranks of a job, dry-run: counts of mean lengths, memory of the longest."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence

from megatron_resrl.planning.dry_run import AnyWorkload, dry_runs
from megatron_resrl.planning.job import Job
from megatron_resrl.planning.layout import distinct_ranks
from megatron_resrl.planning.machine import Machine
from megatron_resrl.planning.records import PhaseRecord, RankRecord


def dry_records(job: Job, machine: Machine) -> list[RankRecord]:
    """What the distinct ranks of a job do in a step.

    Counts are those of sequences of mean length; peaks are those of the longest that the recipe
    allows.

    Args:
        job: Its model's config.json is read, and nothing else.
        machine: GPU and layers.
    """
    recipe, world_size = job.recipe, job.cluster.world_size
    ranks = distinct_ranks(recipe.parallel, world_size)

    def run(load: AnyWorkload) -> list[RankRecord]:
        processes = os.cpu_count() or 1
        return dry_runs(recipe, ranks, world_size, load, machine=machine, processes=processes)

    mean, longest = job.workloads()
    peaks = run(longest)
    if mean == longest:
        return peaks
    return [with_peaks_of(count, peak) for count, peak in zip(run(mean), peaks, strict=True)]


def with_peaks_of(counts: RankRecord, peaks: RankRecord) -> RankRecord:
    """A rank's counts of one workload with the memory of another."""
    return dataclasses.replace(counts, phases=_merged(counts.phases, peaks.phases))


def _merged(counts: Sequence[PhaseRecord], peaks: Sequence[PhaseRecord]) -> tuple[PhaseRecord, ...]:
    memory = {phase.name: phase for phase in peaks}
    return tuple(
        dataclasses.replace(
            phase,
            start_bytes=memory[phase.name].start_bytes,
            peak_bytes=memory[phase.name].peak_bytes,
            peak_by_kind=memory[phase.name].peak_by_kind,
            holders=memory[phase.name].holders,
        )
        for phase in counts
    )
