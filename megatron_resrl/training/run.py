"""The steps of a run: what is evaluated, written down and saved after each, and what ends them."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from megatron_resrl.checkpoint import CheckpointSaver, TrainerState
from megatron_resrl.config.load import recipe_yaml
from megatron_resrl.config.schema import RunSettings
from megatron_resrl.observe.phases import phase
from megatron_resrl.observe.status_file import StatusFile
from megatron_resrl.observe.timers import PhaseTimers
from megatron_resrl.platform.distributed import run_on_rank_zero
from megatron_resrl.platform.phases import begin_step
from megatron_resrl.platform.run_files import step_of
from megatron_resrl.training.health import Alarm, HealthHistory
from megatron_resrl.training.identity import Identity
from megatron_resrl.training.interruption import Interruption
from megatron_resrl.training.journal import Journal
from megatron_resrl.training.memory import SAVE, memory_metrics
from megatron_resrl.training.not_finite import NotFiniteSteps
from megatron_resrl.training.rollbacks import RollBack, roll_back
from megatron_resrl.training.run_lock import RunLock
from megatron_resrl.training.stage import Record, Stage
from megatron_resrl.training.stragglers import RankComparison
from megatron_resrl.training.time_budget import TimeBudget

logger = logging.getLogger(__name__)

HEALTH = "health"
"""Key of `TrainerState.extra` with what the rules of `health` compare with."""


@dataclass(frozen=True)
class RunContext:
    """What a session lends to its run."""

    settings: RunSettings
    """Those that every stage has."""
    identity: Identity
    """Kept in checkpoints, to be compared when the run resumes."""
    interruption: Interruption
    """Requests to end."""
    lock: RunLock
    """Of the output directory."""
    timers: PhaseTimers
    """Of the phases of a step."""
    budget: TimeBudget
    """Of the job."""
    rollbacks: int
    """Of the run so far."""
    status: StatusFile | None
    """On rank 0: tells readers of the directory how far the run is."""


class Run:
    """The steps of a run that are still to do, and what is written down of them."""

    def __init__(
        self,
        context: RunContext,
        stage: Stage,
        journal: Journal,
        saver: CheckpointSaver,
        resumed: TrainerState | None,
    ) -> None:
        """See `Session.run`."""
        self._context = context
        self._settings = context.settings
        self._stage = stage
        self._timers = context.timers
        self._journal = journal
        self._saver = saver
        self._steps_done = resumed.step if resumed else 0
        self._not_finite = NotFiniteSteps(context.settings.optimizer)
        self._history = HealthHistory.of(resumed.extra.get(HEALTH) if resumed else None)
        self._alarmed: set[str] = set()
        self._ranks = RankComparison(context.settings.health, stage.phases)

    def steps(self) -> Iterator[int]:
        """The numbers of the steps to do; `finish_step` must follow each. Collective.

        Evaluates before the first step of a run that does not resume.

        Raises:
            LockLost: Another run has taken the output directory over.
        """
        first = self._steps_done + 1
        if first == 1:
            self._journal.log(0, self._evaluate(0))
        self._timers.collect()
        self._journal.begin_steps()
        self._context.budget.begin()
        for step in range(first, self._settings.steps + 1):
            begin_step(step)
            self._context.lock.confirm()
            yield step
            # Evaluating and saving count for no step.
            self._timers.collect()

    def finish_step(
        self,
        step: int,
        metrics: Mapping[str, float],
        *,
        finite: bool = True,
        batch: Callable[[], Iterable[Record]] = tuple,
        examples: Sequence[Record] = (),
    ) -> None:
        """Evaluates, writes down and saves what is due after a step. Collective.

        Args:
            step: Its number.
            metrics: Of the step; times, rates, evaluations and `health/...` are added.
            finite: False: an update was skipped because a gradient was not finite.
            batch: Makes the records of the whole batch, kept if the step was not finite.
            examples: Records of the step to be read by people.

        Raises:
            NotFinite: On all ranks: gradients were not finite too often.
            RollBack: On all ranks: the run begins again from an older checkpoint.
            CannotRollBack: On all ranks: it should, and cannot.
            Interrupted: On all ranks: the run was asked to end; the step is saved.
            CheckpointError: On all ranks: this checkpoint, or the one before it, is not written.
        """
        self._saver.poll()
        seconds = self._timers.collect()
        metrics = dict(metrics) | self._times(seconds)
        metrics |= self._stage.rates(metrics)
        compared, slow_rank = self._ranks.finish_step(seconds, self._timers.waited)
        metrics |= compared
        if not finite:
            self._journal.dump(step, batch())
        if self._due(step, self._stage.evaluate_every):
            metrics |= self._evaluate(step)
        # The save of the step before counts for this one.
        phases = (*self._stage.phases, "evaluation", SAVE)
        metrics |= memory_metrics(self._timers.take_peaks(), phases)
        alarms, measured = run_on_rank_zero(
            lambda: self._history.judge(metrics, self._settings.health)
        )
        metrics |= measured
        if self._context.rollbacks:
            metrics["health/rollbacks"] = float(self._context.rollbacks)
        self._journal.finish_step(step, metrics, examples)
        if self._context.status is not None:
            self._context.status.finish_step(step)
        self._warn(step, alarms)
        if slow_rank is not None:
            self._journal.warn(step, slow_rank)
        too_often = self._not_finite.count(step, finite, self._journal.dump_path(step))
        reasons = [str(alarm) for alarm in alarms if alarm.reaction == "rollback"]
        if too_often is not None:
            reasons.append(too_often)
        interrupted = self._interrupted(step, metrics)
        if reasons:
            self._roll_back(step, "; ".join(reasons), metrics, interrupted=interrupted)
        if interrupted or self._due(step, self._settings.checkpoint.save_every):
            self._save(step, metrics)
        if interrupted:
            saved = self._saver.wait()
            assert saved is not None, "the step was saved"
            self._context.interruption.end(step, saved)

    def _interrupted(self, step: int, metrics: Mapping[str, float]) -> bool:
        """Whether the run has to end before its last step."""
        budget = self._context.budget
        saving = ("time/checkpoint_blocking", "time/checkpoint_write")
        budget.finish_step(sum(metrics.get(name, 0.0) for name in saving))
        if step == self._settings.steps:
            return False
        return self._context.interruption.requested(out_of_time=budget.is_over())

    def _warn(self, step: int, alarms: Sequence[Alarm]) -> None:
        """Logs the rules that the step breaks and the step before did not."""
        for alarm in alarms:
            if alarm.rule not in self._alarmed:
                self._journal.warn(step, str(alarm))
        self._alarmed = {alarm.rule for alarm in alarms}

    def _roll_back(
        self, step: int, reason: str, metrics: Mapping[str, float], *, interrupted: bool
    ) -> None:
        """Ends the steps after what makes the run begin again from an older checkpoint."""
        self._saver.wait()
        state, health = self._stage.state(), self._settings.health
        values = {name: v if math.isfinite(v) else None for name, v in metrics.items()}
        checkpoint = run_on_rank_zero(
            lambda: roll_back(
                Path(self._settings.output_dir),
                step,
                reason,
                state,
                values,
                window=health.window,
                most=health.max_rollbacks,
            )
        )
        self._journal.warn(
            step, f"{reason}: the run goes back to {checkpoint.name} and on with the data behind"
        )
        if interrupted:
            self._context.interruption.end(step_of(checkpoint), checkpoint)
        raise RollBack(checkpoint)

    def _due(self, step: int, every: int) -> bool:
        return step == self._settings.steps or (every > 0 and step % every == 0)

    def _evaluate(self, step: int) -> dict[str, float]:
        if self._stage.evaluate is None:
            return {}
        with phase(self._timers, "evaluation"):
            return dict(self._stage.evaluate(step))

    def _save(self, step: int, metrics: dict[str, float]) -> None:
        state = self._stage.state()
        own = {"contents": self._context.identity.contents, HEALTH: self._history.saved()}
        recipe = recipe_yaml(self._settings)
        with self._timers.phase(SAVE):
            self._saver.save(TrainerState(step, state.sampler, own | state.extra, metrics, recipe))

    def _times(self, seconds: Mapping[str, float]) -> dict[str, float]:
        """`time/<phase>` of the step just done, every phase present, and `time/step`, their sum.

        Apart from that, the seconds of checkpoints since the step before:
        `time/checkpoint_blocking` in which training waited, `time/checkpoint_write` beside it.
        """
        seconds = {**dict.fromkeys(self._stage.phases, 0.0), **seconds}
        times = {f"time/{name}": value for name, value in seconds.items()}
        times["time/step"] = sum(seconds.values())
        return times | {f"time/checkpoint_{name}": v for name, v in self._saver.times().items()}
