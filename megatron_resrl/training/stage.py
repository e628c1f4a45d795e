"""What a stage of training tells its session: what to evaluate, to save and to report."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

Record = Mapping[str, Any]
"""One object that JSON can hold."""


@dataclass(frozen=True)
class StageState:
    """What a stage saves beside the policy and gets back when it resumes; everything is JSON."""

    sampler: dict[str, Any]
    """Position in the data."""
    extra: dict[str, Any]
    """Whatever else the stage needs."""


@dataclass(frozen=True)
class Stage:
    """What a stage tells its session."""

    headline: str
    """Metric that the progress display shows, e.g. `reward/mean`."""
    state: Callable[[], StageState]
    """Called when a checkpoint is saved, on all ranks alike."""
    phases: tuple[str, ...] = ()
    """Phases whose `time/<phase>` is reported for every step."""
    rates: Callable[[Mapping[str, float]], Mapping[str, float]] = lambda metrics: {}
    """A step's metrics, its times included -> further metrics that are made of them."""
    evaluate: Callable[[int], Mapping[str, float]] | None = None
    """Step -> metrics; before the first step, after the last, and as `evaluate_every` says."""
    evaluate_every: int = 0
    """Steps between evaluations; 0: none between the first and the last step."""
    on_saved: Callable[[int], None] = lambda step: None
    """Called with the step of each checkpoint once it is on disk, possibly from a thread."""
