"""Rules that tell a spike or a collapse from the usual spread of a run's metrics.

Medians and median absolute deviations (MAD) of the steps before are compared with, because one bad
step hardly moves them. All functions are pure; `HealthHistory` is what a checkpoint keeps of them.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from megatron_resrl.config.schema_health import HealthConfig, Reaction

LOSS = "loss"
GRAD_NORM = "grad_norm"
SCORE = "reward/score_mean"
ENTROPY = "entropy"

_NORMAL = 1.4826
"""Standard deviations of a normal distribution per MAD."""
_SMALLEST_SPREAD = 0.01
"""Share of the median that a standard deviation is at least: a metric that hardly moved for a
while must not make a spike of a small change."""
_COLLAPSE_DEVIATIONS = 3.0
"""A score that stays within so many standard deviations of its median has not collapsed."""


@dataclass(frozen=True)
class Alarm:
    """A rule that a step has broken."""

    rule: str
    """Name of the setting in the section `health`."""
    reaction: Reaction
    metric: str
    value: float
    """Of the metric, or its median over `health.collapse_steps`."""
    usual: float
    """Median that it was compared with."""
    limit: float
    """What it should not have passed."""

    def __str__(self) -> str:
        side = "above" if self.value > self.limit else "below"
        return (
            f"{self.metric} is {self.value:.4g}, {side} {self.limit:.4g} "
            f"(health.{self.rule}; its median was {self.usual:.4g})"
        )


def spread(values: Sequence[float]) -> tuple[float, float]:
    """Median, and standard deviation as estimated from the MAD; at least 1% of the median."""
    median = statistics.median(values)
    deviation = statistics.median(abs(value - median) for value in values)
    return median, max(_NORMAL * deviation, _SMALLEST_SPREAD * abs(median))


def deviations_above(value: float, before: Sequence[float]) -> float | None:
    """Standard deviations by which a value lies above the median of the values before.

    Returns:
        None if the values before are all 0, so that they have no spread.
    """
    median, deviation = spread(before)
    return None if deviation == 0 else (value - median) / deviation


def score_limit(before: Sequence[float], share: float) -> float | None:
    """The score below which it has collapsed: a share of the median, and outside the spread.

    Returns:
        None if the median is not above 0: there is nothing to lose.
    """
    median, deviation = spread(before)
    if median <= 0:
        return None
    return min(share * median, median - _COLLAPSE_DEVIATIONS * deviation)


@dataclass
class HealthHistory:
    """The values that the rules compare with; everything is JSON."""

    recent: dict[str, list[float]] = field(default_factory=dict)
    """Metric -> its finite values of the last steps, the newest last."""
    first_entropies: list[float] = field(default_factory=list)
    """Of the run's first steps."""

    @classmethod
    def of(cls, saved: Mapping[str, Any] | None) -> HealthHistory:
        """What `saved` returned in the run that is continued; empty for None."""
        saved = saved or {}
        recent = {name: list(values) for name, values in saved.get("recent", {}).items()}
        return cls(recent, list(saved.get("first_entropies", [])))

    def saved(self) -> dict[str, Any]:
        """For a checkpoint."""
        return {
            "recent": {name: list(values) for name, values in self.recent.items()},
            "first_entropies": list(self.first_entropies),
        }

    def judge(
        self, metrics: Mapping[str, float], settings: HealthConfig
    ) -> tuple[list[Alarm], dict[str, float]]:
        """Compares a step with those before, and adds it to them.

        Args:
            metrics: Of the step; what is missing or not finite is not judged.
            settings: The recipe's section.

        Returns:
            Rules that the step breaks, and metrics `health/...` that say how far off it is.
        """
        rules = (
            self._spike("loss_spike", LOSS, metrics, settings),
            self._spike("grad_norm_spike", GRAD_NORM, metrics, settings),
            self._score_collapse(metrics, settings),
            self._entropy_collapse(metrics, settings),
        )
        self._add(metrics, settings)
        alarms = [alarm for alarm, _ in rules if alarm is not None]
        return alarms, {name: value for _, found in rules for name, value in found.items()}

    def _spike(
        self, rule: str, metric: str, metrics: Mapping[str, float], settings: HealthConfig
    ) -> tuple[Alarm | None, dict[str, float]]:
        reaction: Reaction = getattr(settings, rule)
        value, before = metrics.get(metric, math.nan), self.recent.get(metric, [])
        if reaction == "off" or not math.isfinite(value) or 2 * len(before) < settings.window:
            return None, {}
        distance = deviations_above(value, before[-settings.window :])
        if distance is None:
            return None, {}
        measured = {f"health/{metric}_deviations": distance}
        if distance <= settings.deviations:
            return None, measured
        median, deviation = spread(before[-settings.window :])
        limit = median + settings.deviations * deviation
        return Alarm(rule, reaction, metric, value, median, limit), measured

    def _score_collapse(
        self, metrics: Mapping[str, float], settings: HealthConfig
    ) -> tuple[Alarm | None, dict[str, float]]:
        values = self._with(SCORE, metrics)
        fallen = values[-settings.collapse_steps :]
        before = values[: -settings.collapse_steps][-settings.window :]
        if settings.reward_collapse == "off" or 2 * len(before) < settings.window:
            return None, {}
        limit = score_limit(before, settings.reward_share)
        if limit is None:
            return None, {}
        usual, now = statistics.median(before), statistics.median(fallen)
        measured = {"health/reward_share": now / usual}
        if now >= limit:
            return None, measured
        reaction = settings.reward_collapse
        return Alarm("reward_collapse", reaction, SCORE, now, usual, limit), measured

    def _entropy_collapse(
        self, metrics: Mapping[str, float], settings: HealthConfig
    ) -> tuple[Alarm | None, dict[str, float]]:
        first = self.first_entropies
        if settings.entropy_collapse == "off" or 2 * len(first) < settings.window:
            return None, {}
        usual = statistics.median(first)
        now = statistics.median(self._with(ENTROPY, metrics)[-settings.collapse_steps :])
        if usual <= 0:
            return None, {}
        measured = {"health/entropy_share": now / usual}
        limit = settings.entropy_share * usual
        if now >= limit:
            return None, measured
        reaction = settings.entropy_collapse
        return Alarm("entropy_collapse", reaction, ENTROPY, now, usual, limit), measured

    def _with(self, metric: str, metrics: Mapping[str, float]) -> list[float]:
        """The values of a metric up to this step."""
        value = metrics.get(metric, math.nan)
        return self.recent.get(metric, []) + [value] * math.isfinite(value)

    def _add(self, metrics: Mapping[str, float], settings: HealthConfig) -> None:
        kept = settings.window + settings.collapse_steps
        for metric in (LOSS, GRAD_NORM, SCORE, ENTROPY):
            if values := self._with(metric, metrics):
                self.recent[metric] = values[-kept:]
        entropy = metrics.get(ENTROPY, math.nan)
        if math.isfinite(entropy) and len(self.first_entropies) < settings.window:
            self.first_entropies.append(entropy)
