"""Finds the rank that the others wait for.

Ranks leave a phase together, because they meet in it, so that its length is the same everywhere.
What differs is a rank's own time: that of the phase without its waits (`platform/meetings.py`).
Ranks of one pipeline stage are compared, since stages differ in their work.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch.distributed as dist
from megatron.core import parallel_state

from megatron_resrl.config.schema_health import HealthConfig
from megatron_resrl.platform.distributed import gather_numbers, gather_objects
from megatron_resrl.platform.places import own_place

_SMALL_SHARE = 0.05
"""Of the median rank's own time in a step: phases below it are not compared. Those that rank 0
does for all others are 0 there."""


@dataclass(frozen=True)
class Straggler:
    """The slowest rank of one phase."""

    phase: str
    rank: int
    seconds: float
    """Its own time in the phase."""
    median: float
    """The same of the median rank of its pipeline stage; of two ranks the faster one's."""

    @property
    def ratio(self) -> float:
        """How many times as long it takes."""
        return self.seconds / self.median

    @property
    def excess(self) -> float:
        """Seconds that the others wait for it."""
        return self.seconds - self.median


def stragglers(
    own: Sequence[Mapping[str, float]], stages: Sequence[Sequence[int]]
) -> dict[str, Straggler]:
    """Phase -> the rank that the others waited for longest in a step.

    Args:
        own: By rank, its own seconds in each phase; all have the same phases.
        stages: Ranks of each pipeline stage.
    """
    found: dict[str, Straggler] = {}
    for ranks in stages:
        total = statistics.median_low(sum(own[rank].values()) for rank in ranks)
        for phase in own[ranks[0]] if len(ranks) > 1 else ():
            seconds = {rank: own[rank][phase] for rank in ranks}
            median = statistics.median_low(seconds.values())
            slowest = max(ranks, key=seconds.__getitem__)
            each = Straggler(phase, slowest, seconds[slowest], median)
            known = found.get(phase)
            if median > _SMALL_SHARE * total and (known is None or each.excess > known.excess):
                found[phase] = each
    return found


def straggler_metrics(found: Mapping[str, Straggler]) -> dict[str, float]:
    """`straggler/...` of a step; nothing where no phase can be compared."""
    if not found:
        return {}
    worst = max(found.values(), key=lambda each: each.excess)
    metrics = {f"straggler/{each.phase}_ratio": each.ratio for each in found.values()}
    metrics["straggler/rank"] = float(worst.rank)
    metrics["straggler/wait_seconds"] = worst.excess
    return metrics


class StragglerWatch:
    """Warns once when the same rank has been slow in the same phase for some steps."""

    def __init__(self, settings: HealthConfig, places: Sequence[str]) -> None:
        """
        Args:
            settings: The recipe's section.
            places: Rank, host and device of each rank, in words.
        """
        self._ratio = settings.straggler_ratio or math.inf
        self._steps = settings.straggler_steps
        self._places = places
        self._suspect: tuple[int, str] | None = None
        self._in_a_row = 0
        self._named: tuple[int, str] | None = None
        self._without = 0

    def finish_step(self, found: Mapping[str, Straggler]) -> str | None:
        """Takes note of a step.

        Args:
            found: From `stragglers`.

        Returns:
            What to warn of, if anything.
        """
        slow = [each for each in found.values() if each.ratio > self._ratio]
        worst = max(slow, key=lambda each: each.excess, default=None)
        suspect = None if worst is None else (worst.rank, worst.phase)
        self._in_a_row = self._in_a_row + 1 if suspect == self._suspect else 1
        self._suspect = suspect
        self._without = 0 if suspect == self._named else self._without + 1
        if self._without >= self._steps:
            self._named = None
        if worst is None or self._in_a_row < self._steps or suspect == self._named:
            return None
        self._named, self._without = suspect, 0
        return (
            f"{self._places[worst.rank]} has been the slowest in phase {worst.phase!r} for "
            f"{self._steps} steps: {worst.ratio:.2f} times as long as the median rank, which waits "
            f"{worst.excess:.2f} s per step for it (health.straggler_ratio)"
        )


class RankComparison:
    """Compares the ranks after each step; every rank makes the same calls."""

    def __init__(self, settings: HealthConfig, phases: Sequence[str]) -> None:
        """Asks every rank where it is. Collective.

        Args:
            settings: The recipe's section.
            phases: That are compared, those of the stage.
        """
        self._phases = (*phases, "other")
        self._compares = settings.straggler_ratio is not None and dist.get_world_size() > 1
        if not self._compares:
            return
        stage = parallel_state.get_pipeline_model_parallel_rank()
        ranks = gather_objects((str(own_place()), stage))
        self._stages = [
            [rank for rank, (_, each) in enumerate(ranks) if each == number]
            for number in sorted({each for _, each in ranks})
        ]
        places = [place for place, _ in ranks]
        self._watch = StragglerWatch(settings, places)

    def finish_step(
        self, seconds: Mapping[str, float], waited: Mapping[str, float]
    ) -> tuple[dict[str, float], str | None]:
        """Gathers a step's times on rank 0. Collective.

        Args:
            seconds: Of this rank's phases.
            waited: Seconds of them in which this rank waited for others.

        Returns:
            On rank 0 metrics `straggler/...`, and what to warn of.
        """
        if not self._compares:
            return {}, None
        own = [seconds.get(name, 0.0) - waited.get(name, 0.0) for name in self._phases]
        of_ranks = gather_numbers(own)
        if not of_ranks:
            return {}, None
        times = [dict(zip(self._phases, each, strict=True)) for each in of_ranks]
        found = stragglers(times, self._stages)
        return straggler_metrics(found), self._watch.finish_step(found)
