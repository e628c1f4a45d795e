"""The distinct ranks of a job, dry-run: counts of mean lengths, memory of the longest."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence

from megatron_resrl.config.schema import Recipe
from megatron_resrl.planning.dry_run import dry_runs
from megatron_resrl.planning.layout import distinct_ranks
from megatron_resrl.planning.machine import Machine
from megatron_resrl.planning.records import PhaseRecord, RankRecord
from megatron_resrl.planning.step_shape import StepShape
from megatron_resrl.planning.workload import Workload


def dry_records(
    recipe: Recipe, world_size: int, step: StepShape, longest: StepShape, machine: Machine
) -> list[RankRecord]:
    """What the distinct ranks of a job do in a step.

    Args:
        recipe: Its model's config.json is read, and nothing else.
        world_size: Ranks of the job.
        step: Mean lengths; counts are those of responses as long.
        longest: The longest that the recipe allows; peaks are theirs.
        machine: GPU and layers.
    """
    ranks = distinct_ranks(recipe.parallel, world_size)

    def run(shape: StepShape) -> list[RankRecord]:
        load = Workload(shape.prompt_tokens, max(1, round(shape.response_row)))
        processes = os.cpu_count() or 1
        return dry_runs(recipe, ranks, world_size, load, machine=machine, processes=processes)

    peaks = run(longest)
    if step == longest:
        return peaks
    return [with_peaks_of(count, peak) for count, peak in zip(run(step), peaks, strict=True)]


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
