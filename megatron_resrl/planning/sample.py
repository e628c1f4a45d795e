"""A whole step from steps of few groups.

A pipeline that is full takes as much more for each further group, of everything that is counted.
Memory grows, too: by a group's tokens, log-probabilities and weights.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

from megatron_resrl.config.schema import ParallelConfig, Recipe
from megatron_resrl.planning.records import PhaseRecord
from megatron_resrl.planning.scaling import combined, extrapolated, with_more_activations

Runs = Mapping[int, Mapping[str, PhaseRecord]]
"""Groups of a step that was taken -> its phases by name."""

_LONGEST_PERIOD = 8
"""Micro-batches: a longer period is not run as a whole."""


@dataclass(frozen=True)
class GroupsOfStep:
    """Groups of the replica that has most; one that has fewer still takes part."""

    scored: int
    """Of a whole step."""
    updated: int
    """Of one update."""
    updates: int
    """Of a step."""
    scored_again: int = 0
    """Between the updates, see `resrl.refresh`."""

    @classmethod
    def of(cls, recipe: Recipe, replicas: int) -> GroupsOfStep:
        """The groups of a recipe on so many data-parallel replicas."""
        updates = recipe.algorithm.updates_per_step
        per_update = recipe.rollout.prompts_per_step // updates
        updated = max(1, math.ceil(per_update / replicas))
        again = (updates - 1) * updated if recipe.resrl.refresh == "minibatch" else 0
        return cls(updated * updates, updated, updates, again)


@dataclass(frozen=True)
class Sample:
    """Two sizes of a step, in groups, that differ by whole micro-batches."""

    few: int
    """Fills the pipeline; whole periods."""
    period: int
    """Groups whose micro-batches are full, and as many as the schedule takes together."""

    @property
    def many(self) -> int:
        """The larger size."""
        return self.few + self.period

    @classmethod
    def of(cls, recipe: Recipe) -> Sample:
        """The sizes for a recipe of reinforcement learning."""
        size, group = recipe.algorithm.micro_batch_size, recipe.rollout.group_size
        return cls._filling(recipe.parallel, size, group)

    @classmethod
    def of_micro_batches(cls, parallel: ParallelConfig) -> Sample:
        """The sizes, in micro-batches, for a stage without groups."""
        return cls._filling(parallel, 1, 1)

    @classmethod
    def _filling(cls, parallel: ParallelConfig, size: int, group: int) -> Sample:
        """Of micro-batches of `size` and groups of `group` sequences."""
        stages = parallel.pipeline_model_parallel_size
        interleaved = parallel.virtual_pipeline_model_parallel_size is not None
        # Interleaved schedules take multiples of the stages, and hold up to twice as many.
        multiple = size * stages if interleaved else size
        period = math.lcm(group, multiple) // group
        if period * group > _LONGEST_PERIOD * multiple:
            period = math.ceil(multiple / group)
        filling = size * stages * (2 if interleaved else 1)
        return cls(math.ceil(filling / group / period) * period, period)

    def sizes(self, groups: GroupsOfStep) -> list[int]:
        """Sizes of the steps to take: those of the step itself where it is not larger."""
        found: set[int] = set()
        for wanted in (groups.updated, groups.scored):
            found |= {wanted} if wanted <= self.many else {self.few, self.many}
        return sorted(found)


def whole_step(runs: Runs, sample: Sample, groups: GroupsOfStep) -> dict[str, PhaseRecord]:
    """Counts of the whole step, and peaks.

    Args:
        runs: Steps of one update, of `Sample.sizes`.
        sample: The sizes.
        groups: Of the whole step.

    Returns:
        Phases by name, in the order of the runs.
    """
    # What scoring leaves on the device until the last update.
    left = _growth(runs, min(runs), max(runs), "start_bytes")
    found = {}
    for name in runs[max(runs)]:
        scoring = name != "update"
        wanted = groups.scored if scoring else groups.updated
        if wanted in runs:
            few, many, grows = wanted, wanted, 0.0
        else:
            # Scoring holds the same of a further group as an update: its micro-batches wait, too.
            few, many = sample.few, sample.many
            grows = _growth(runs, few, many, "peak_bytes") * (wanted - many)
        counted = wanted + groups.scored_again if scoring else wanted
        phase = extrapolated(
            runs[few][name],
            runs[many][name],
            few=few,
            many=many,
            wanted=counted if wanted in runs else _in_periods(counted, sample.period),
        )
        if not scoring:
            grows += left * (groups.scored - wanted)
            start = phase.start_bytes + round(left * (groups.scored - many))
            phase = combined([(phase, groups.updates)], like=replace(phase, start_bytes=start))
        found[name] = with_more_activations(phase, round(grows))
    return found


def _in_periods(groups: int, period: int) -> int:
    """What begins a period takes as much as a whole one."""
    return math.ceil(groups / period) * period


def _growth(runs: Runs, few: int, many: int, name: str) -> float:
    """How much an attribute of the update grows with each group, at least 0."""
    if few == many:
        return 0.0
    first, last = (getattr(runs[size]["update"], name) for size in (few, many))
    return max(0.0, (last - first) / (many - few))
