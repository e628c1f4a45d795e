"""What every training stage needs around its steps, whatever a step does.

A session holds the process groups, the handlers of signals and the lock of the output directory. A
run inside it (`run.py`) writes metrics and checkpoints, times phases, and ends in order when it is
asked to or gradients stay not finite; after a rollback it begins again in the same processes. A
session knows neither rollouts nor rewards: a stage says what to evaluate and what to save beside
the policy (`stage.py`).
"""

from __future__ import annotations

import contextlib
import datetime
import logging
import os
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

import torch.distributed as dist

from megatron_resrl.checkpoint import CheckpointSaver, Retention, TrainerState, load_checkpoint
from megatron_resrl.config.durations import seconds_of
from megatron_resrl.config.load import recipe_yaml
from megatron_resrl.config.schema import RunSettings
from megatron_resrl.config.stages import STAGES
from megatron_resrl.errors import InputError, RunError
from megatron_resrl.observe.status_file import StatusFile
from megatron_resrl.observe.timers import PhaseTimers
from megatron_resrl.platform.clock import device_clock
from megatron_resrl.platform.disk import report_full_disk
from megatron_resrl.platform.distributed import process_groups, run_on_rank_zero
from megatron_resrl.platform.garbage import start_up_left_alone
from megatron_resrl.platform.hosts import require_alike_hosts
from megatron_resrl.platform.job_clock import job_seconds
from megatron_resrl.platform.meetings import meetings_recorded
from megatron_resrl.platform.memory_peaks import memory_peaks
from megatron_resrl.policy.policy import Policy
from megatron_resrl.policy.sizes import checkpoint_bytes
from megatron_resrl.training.identity import Identity, require_same_on_all_ranks
from megatron_resrl.training.interruption import Interrupted, Interruption
from megatron_resrl.training.journal import Journal
from megatron_resrl.training.rollbacks import (
    RollBack,
    Rollback,
    position_after,
    read_rollbacks,
)
from megatron_resrl.training.run import Run, RunContext
from megatron_resrl.training.run_lock import RunLock, this_process
from megatron_resrl.training.stage import Stage
from megatron_resrl.training.starting_point import (
    NothingLeftToDo,
    StartingPoint,
    find_starting_point,
    note_finished,
)
from megatron_resrl.training.time_budget import TimeBudget
from megatron_resrl.weights.hugging_face import save_hf_model

logger = logging.getLogger(__name__)


@contextlib.contextmanager
def open_session(settings: RunSettings) -> Iterator[Session]:
    """Starts process groups, signal handlers and the lock of the output directory.

    Raises:
        FolderInUse: On all ranks: another run writes into the directory.
        InputError: On all ranks: the ranks cannot meet, their GPUs differ, or the directory cannot
            be written to or is not the same on all hosts.
        DiskFull: A file of the block could not be written.
    """
    output_dir = Path(settings.output_dir)
    ranks = int(os.environ.get("WORLD_SIZE", "1"))
    size = checkpoint_bytes(settings.model, settings.parallel, settings.precision, ranks)
    with (
        report_full_disk(output_dir, size),
        Interruption(output_dir, settings.checkpoint.preemption_exit_code) as interruption,
        process_groups(settings.parallel, settings.seed),
        RunLock(output_dir) as lock,
        _status_file(settings) as status,
    ):
        require_alike_hosts()
        yield Session(settings, interruption, lock, status)


class Session:
    """An output directory, its ranks and its signals, for one run of one stage.

    Attributes:
        settings: Those that every stage has.
        timers: Of the phases of a step.
        rollbacks: Of the run so far, the newest last.
    """

    def __init__(
        self,
        settings: RunSettings,
        interruption: Interruption,
        lock: RunLock,
        status: StatusFile | None,
    ) -> None:
        """See `open_session`; rank 0 has a status file."""
        self.settings = settings
        self.interruption = interruption
        self.lock = lock
        self.status = status
        self.timers = PhaseTimers(device_clock(), memory_peaks())
        self.rollbacks: list[Rollback] = []
        limit = None if settings.time_budget is None else seconds_of(settings.time_budget)
        self._budget = TimeBudget(limit, partial(job_seconds, os.environ))

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
            Where the trainer was, with the data behind those that a rollback skips; None: the run
            starts from step 1.
        """
        output_dir = Path(self.settings.output_dir)
        self.rollbacks = run_on_rank_zero(lambda: read_rollbacks(output_dir))
        if start.checkpoint is None:
            return None
        state = load_checkpoint(start.checkpoint, policy)
        logger.info("resumed after step %d from %s", state.step, start.checkpoint)
        position = position_after(state.step, self.rollbacks)
        if position is None:
            return state
        logger.info("the data since this step are skipped, because the run went back there")
        return replace(state, sampler=position.sampler, extra=state.extra | position.extra)

    def attempts(self, start: StartingPoint, attempt: Callable[[StartingPoint], None]) -> None:
        """Calls what resumes and runs a stage, again after each rollback. Collective.

        Args:
            start: Of the first attempt.
            attempt: Resumes the policy, makes everything that depends on the position in the data,
                and does the steps that are left.
        """
        while True:
            try:
                attempt(start)
            except RollBack as request:
                start = StartingPoint(request.checkpoint)
            else:
                return

    @contextlib.contextmanager
    def run(
        self,
        stage: Stage,
        policy: Policy,
        identity: Identity,
        resumed: TrainerState | None = None,
    ) -> Iterator[Run]:
        """Writes metrics, checkpoints and at the end the exported policy. Collective.

        Args:
            stage: What is evaluated and saved.
            policy: With an optimizer.
            identity: Kept in checkpoints, to be compared when the run resumes.
            resumed: From `resume`.

        Raises:
            InputError: On all ranks: a file of the run that is continued holds something else.
            CheckpointError: A checkpoint could not be written.
        """
        settings, output_dir = self.settings, Path(self.settings.output_dir)
        steps_done = resumed.step if resumed else 0
        context = RunContext(
            settings,
            identity,
            self.interruption,
            self.lock,
            self.timers,
            self._budget,
            len(self.rollbacks),
            self.status,
        )
        journal = Journal(
            output_dir,
            settings.logging,
            settings.steps,
            headline=stage.headline,
            resume_step=steps_done or None,
        )
        saving = _saver(settings, policy, stage.on_saved)
        if self.status is not None:
            self.status.begin(settings.steps, steps_done)
        meetings = meetings_recorded(self.timers.waiting)
        with journal, saving as saver, meetings, start_up_left_alone():
            journal.write_recipe(recipe_yaml(settings))
            yield Run(context, stage, journal, saver, resumed)
        if settings.checkpoint.export_hf:
            save_hf_model(
                policy.modules,
                policy.hf_config,
                output_dir / "hf",
                tokenizer=settings.model.tokenizer_path,
            )
        note_finished(output_dir, max(steps_done, settings.steps))


def _status_file(settings: RunSettings) -> contextlib.AbstractContextManager[StatusFile | None]:
    if dist.get_rank() != 0:
        return contextlib.nullcontext()
    kinds = {kind: stage for stage, kind in STAGES.items()}
    process = asdict(this_process())
    own = {name: process[name] for name in ("host", "pid", "job", "restarts", "started")}
    own["stage"] = kinds.get(type(settings), type(settings).__name__)
    return StatusFile(Path(settings.output_dir), own, _how_it_ended)


def _how_it_ended(error: BaseException | None) -> tuple[str, str | None]:
    """State of a run that has ended, and what to say of it."""
    if error is None or isinstance(error, NothingLeftToDo):
        return "finished", None
    if isinstance(error, Interrupted):
        return "interrupted", str(error)
    explains_itself = isinstance(error, (InputError, RunError))
    return "failed", str(error) if explains_itself else f"{type(error).__name__}: {error}"


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
