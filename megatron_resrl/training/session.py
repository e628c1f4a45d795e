"""What every training stage needs around its steps, whatever a step does.

A session holds the process groups, the handlers of signals and the lock of the output directory. A
run inside it restores the checkpoint, writes metrics and checkpoints, times phases, and ends in
order when a signal asks for that or gradients stay not finite. It knows neither rollouts nor
rewards: a stage tells it what to evaluate and what to save beside the policy.
"""

from __future__ import annotations

import contextlib
import datetime
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron_resrl.checkpoint import CheckpointSaver, Retention, TrainerState, load_checkpoint
from megatron_resrl.config.load import recipe_yaml
from megatron_resrl.config.schema import RunSettings
from megatron_resrl.observe.phases import phase
from megatron_resrl.observe.timers import PhaseTimers
from megatron_resrl.platform.clock import device_clock
from megatron_resrl.platform.disk import report_full_disk
from megatron_resrl.platform.distributed import process_groups
from megatron_resrl.platform.phases import begin_step
from megatron_resrl.policy.policy import Policy
from megatron_resrl.policy.sizes import checkpoint_bytes
from megatron_resrl.training.identity import Identity, require_same_on_all_ranks
from megatron_resrl.training.interruption import Interruption
from megatron_resrl.training.journal import Journal
from megatron_resrl.training.not_finite import NotFiniteSteps
from megatron_resrl.training.run_lock import RunLock
from megatron_resrl.training.starting_point import (
    StartingPoint,
    find_starting_point,
    note_finished,
)
from megatron_resrl.weights.hugging_face import save_hf_model

logger = logging.getLogger(__name__)

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


@contextlib.contextmanager
def open_session(settings: RunSettings) -> Iterator[Session]:
    """Starts process groups, signal handlers and the lock of the output directory.

    Raises:
        FolderInUse: On all ranks: another run writes into the directory.
        InputError: On all ranks: the ranks cannot meet, or the directory cannot be written to.
        DiskFull: A file of the block could not be written.
    """
    output_dir = Path(settings.output_dir)
    size = checkpoint_bytes(settings.model, settings.parallel, settings.precision)
    with (
        report_full_disk(output_dir, size),
        Interruption(output_dir, settings.checkpoint.preemption_exit_code) as interruption,
        process_groups(settings.parallel, settings.seed),
        RunLock(output_dir) as lock,
    ):
        yield Session(settings, interruption, lock)


class Session:
    """An output directory, its ranks and its signals, for one run of one stage.

    Attributes:
        settings: Those that every stage has.
        timers: Of the phases of a step.
    """

    def __init__(self, settings: RunSettings, interruption: Interruption, lock: RunLock) -> None:
        """See `open_session`."""
        self.settings = settings
        self.interruption = interruption
        self.lock = lock
        self.timers = PhaseTimers(device_clock())

    def find_start(self, identity: Identity) -> StartingPoint:
        """Compares the ranks, and looks for the checkpoint that the run continues. Collective.

        Raises:
            InputError, NothingLeftToDo, CheckpointError: On all ranks, see `find_starting_point`.
        """
        require_same_on_all_ranks(identity)
        return find_starting_point(self.settings, identity)

    def resume(self, start: StartingPoint, policy: Policy) -> TrainerState | None:
        """Loads the checkpoint of `start` into the policy. Collective.

        Returns:
            Where the trainer was; None: the run starts from step 1.
        """
        if start.checkpoint is None:
            return None
        state = load_checkpoint(start.checkpoint, policy)
        logger.info("resumed after step %d from %s", state.step, start.checkpoint)
        return state

    @contextlib.contextmanager
    def run(
        self,
        stage: Stage,
        policy: Policy,
        identity: Identity,
        *,
        steps_done: int = 0,
    ) -> Iterator[Run]:
        """Writes metrics, checkpoints and at the end the exported policy. Collective.

        Args:
            stage: What is evaluated and saved.
            policy: With an optimizer.
            identity: Kept in checkpoints, to be compared when the run resumes.
            steps_done: Steps of the checkpoint that the run continues.

        Raises:
            InputError: On all ranks: a file of the run that is continued holds something else.
            CheckpointError: A checkpoint could not be written.
        """
        settings, output_dir = self.settings, Path(self.settings.output_dir)
        journal = Journal(
            output_dir,
            settings.logging,
            settings.steps,
            headline=stage.headline,
            resume_step=steps_done or None,
        )
        with journal, _saver(settings, policy, stage.on_saved) as saver:
            journal.write_recipe(recipe_yaml(settings))
            yield Run(self, stage, identity, journal, saver, steps_done)
        if settings.checkpoint.export_hf:
            save_hf_model(
                policy.modules,
                policy.hf_config,
                output_dir / "hf",
                tokenizer=settings.model.tokenizer_path,
            )
        note_finished(output_dir, max(steps_done, settings.steps))


class Run:
    """The steps of a run that are still to do, and what is written down of them."""

    def __init__(
        self,
        session: Session,
        stage: Stage,
        identity: Identity,
        journal: Journal,
        saver: CheckpointSaver,
        steps_done: int,
    ) -> None:
        """See `Session.run`."""
        self._session = session
        self._settings = session.settings
        self._stage = stage
        self._identity = identity
        self._timers = session.timers
        self._journal = journal
        self._saver = saver
        self._steps_done = steps_done
        self._not_finite = NotFiniteSteps(session.settings.optimizer)

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
        for step in range(first, self._settings.steps + 1):
            begin_step(step)
            self._session.lock.confirm()
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
            metrics: Of the step; times, rates and evaluations are added.
            finite: False: an update was skipped because a gradient was not finite.
            batch: Makes the records of the whole batch, kept if the step was not finite.
            examples: Records of the step to be read by people.

        Raises:
            NotFinite: On all ranks: gradients were not finite too often.
            Interrupted: On all ranks: a signal asked the run to end; the step is saved.
            CheckpointError: On all ranks: this checkpoint, or the one before it, is not written.
        """
        self._saver.poll()
        metrics = dict(metrics) | self._times()
        metrics |= self._stage.rates(metrics)
        if not finite:
            self._journal.dump(step, batch())
        if self._due(step, self._stage.evaluate_every):
            metrics |= self._evaluate(step)
        self._journal.finish_step(step, metrics, examples)
        self._not_finite.count(step, finite, self._journal.dump_path(step))
        interrupted = step < self._settings.steps and self._session.interruption.requested()
        if interrupted or self._due(step, self._settings.checkpoint.save_every):
            self._save(step, metrics)
        if interrupted:
            saved = self._saver.wait()
            assert saved is not None, "the step was saved"
            self._session.interruption.end(step, saved)

    def _due(self, step: int, every: int) -> bool:
        return step == self._settings.steps or (every > 0 and step % every == 0)

    def _evaluate(self, step: int) -> dict[str, float]:
        if self._stage.evaluate is None:
            return {}
        with phase(self._timers, "evaluation"):
            return dict(self._stage.evaluate(step))

    def _save(self, step: int, metrics: dict[str, float]) -> None:
        state = self._stage.state()
        extra = {"contents": self._identity.contents} | state.extra
        recipe = recipe_yaml(self._settings)
        self._saver.save(TrainerState(step, state.sampler, extra, metrics, recipe))

    def _times(self) -> dict[str, float]:
        """`time/<phase>` of the step just done, every phase present, and `time/step`, their sum.

        Apart from that, the seconds of checkpoints since the step before:
        `time/checkpoint_blocking` in which training waited, `time/checkpoint_write` beside it.
        """
        seconds = dict.fromkeys(self._stage.phases, 0.0) | self._timers.collect()
        times = {f"time/{name}": value for name, value in seconds.items()}
        times["time/step"] = sum(seconds.values())
        return times | {f"time/checkpoint_{name}": v for name, v in self._saver.times().items()}


def _saver(
    settings: RunSettings, policy: Policy, on_saved: Callable[[int], None]
) -> CheckpointSaver:
    own = settings.checkpoint
    return CheckpointSaver(
        Path(settings.output_dir),
        policy,
        Retention(own.keep_last, own.keep_every, own.best_metric, own.best_mode),
        background=own.async_save,
        timeout=datetime.timedelta(minutes=settings.parallel.timeout_minutes),
        on_saved=on_saved,
    )
