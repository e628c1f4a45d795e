"""Saves a run's checkpoints while it trains."""

from __future__ import annotations

import contextlib
import datetime
import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed as dist

from megatron_resrl.checkpoint.checkpoint import PendingSave, TrainerState, begin_save
from megatron_resrl.checkpoint.folders import CheckpointError
from megatron_resrl.checkpoint.host_copies import HostMemory
from megatron_resrl.checkpoint.retention import Retention
from megatron_resrl.platform.distributed import any_rank, device
from megatron_resrl.platform.phases import named_phase
from megatron_resrl.policy.policy import Policy

logger = logging.getLogger(__name__)

_LAST_CHANCE_S = 30.0
"""How long a run that ends with an error waits for the save in progress."""


class _Running(NamedTuple):
    """A save in progress in a thread."""

    thread: threading.Thread
    future: Future[float]

    def result(self, timeout: float | None = None) -> float:
        """The seconds it took, or raises what it raised, once its thread has ended, too.

        The thread lets go of a process group last; if the interpreter ended meanwhile, that would
        abort the process.
        """
        try:
            return self.future.result(timeout)
        finally:
            if self.future.done():
                self.thread.join()


class CheckpointSaver(contextlib.AbstractContextManager):
    """Writes checkpoints, one at a time, in a thread of each rank or while the caller waits.

    In the background, a step is held up only while what training changes is copied to host memory;
    planning, writing, checksums, publication and the deletion of old checkpoints happen beside the
    following steps. The threads agree over a gloo group of their own. Every rank makes the same
    calls in the same order.
    """

    def __init__(
        self,
        output_dir: Path,
        policy: Policy,
        retention: Retention,
        *,
        background: bool,
        timeout: datetime.timedelta,
        on_saved: Callable[[int], None],
    ) -> None:
        """
        Args:
            output_dir: Of the run; on a file system that all hosts share.
            policy: With an optimizer.
            retention: Which checkpoints stay.
            background: Write in a thread.
            timeout: How long the threads of the ranks wait for each other.
            on_saved: Called with the step of each checkpoint once it is there.
        """
        self.output_dir = output_dir
        self.policy = policy
        self.retention = retention
        self.background = background
        self.group = dist.new_group(backend="gloo", timeout=timeout) if background else None
        self._copies = HostMemory()
        self._on_saved = on_saved
        self._written: Path | None = None
        self._running: _Running | None = None
        self._times: dict[str, float] = {}

    @named_phase("checkpoint")
    def save(self, state: TrainerState) -> None:
        """Saves the current policy, after waiting for a save in progress. Collective.

        Raises:
            CheckpointError: This checkpoint, or in the background the one before it, could not
                be written.
        """
        began = time.perf_counter()
        self.wait()
        pending = begin_save(
            self.output_dir,
            self.policy,
            state,
            retention=self.retention,
            group=self.group,
            copies=self._copies if self.background else None,
        )
        if self.background:
            self._running = self._in_thread(pending, state.step)
        else:
            with named_phase("checkpoint write"):
                self._note("write", self._finish(pending, state.step))
        self._note("blocking", time.perf_counter() - began)

    def poll(self) -> None:
        """Completes a save that has ended on all ranks. Collective.

        Raises:
            CheckpointError: It failed.
        """
        running = self._running
        if running is not None and not any_rank(not running.future.done()):
            self._collect(running)

    def wait(self) -> Path | None:
        """Waits for the save in progress, if any.

        Returns:
            The last checkpoint written.

        Raises:
            CheckpointError: The save failed.
        """
        if self._running is not None:
            with named_phase("checkpoint write"):
                self._collect(self._running)
        return self._written

    def times(self) -> dict[str, float]:
        """Seconds since the last call: `blocking` training, and `write` of the ended saves."""
        times, self._times = self._times, {}
        return times

    def _in_thread(self, pending: PendingSave, step: int) -> _Running:
        """Finishes a save in a thread that does not keep the process alive."""
        future: Future[float] = Future()
        own = device()

        def run() -> None:
            try:
                if own.type == "cuda":
                    # A new thread starts on device 0, where all ranks would make a context.
                    torch.cuda.set_device(own)
                future.set_result(self._finish(pending, step))
            # Any error is raised in the caller, which must not wait for ever.
            except BaseException as error:
                future.set_exception(_as_checkpoint_error(pending, error))

        thread = threading.Thread(target=run, name="checkpoint writer", daemon=True)
        thread.start()
        return _Running(thread, future)

    def _finish(self, pending: PendingSave, step: int) -> float:
        """Writes, and returns the seconds it took."""
        began = time.perf_counter()
        path = pending.finish()
        self._copies.release()
        seconds = time.perf_counter() - began
        logger.info("%s written in %.2f s", path, seconds)
        self._written = path
        self._on_saved(step)
        return seconds

    def _collect(self, running: _Running) -> None:
        self._running = None
        self._note("write", running.result())

    def _note(self, what: str, seconds: float) -> None:
        self._times[what] = self._times.get(what, 0.0) + seconds

    def __exit__(self, *raised: Any) -> None:
        _, error, _ = raised
        if error is None:
            self.wait()
        elif self._running is not None:
            # Other ranks may have ended already; the error that ends the run is not replaced.
            try:
                self._running.result(_LAST_CHANCE_S)
            except TimeoutError:
                logger.warning(
                    "the checkpoint in progress is lost: it is not written after %g s",
                    _LAST_CHANCE_S,
                )
            except CheckpointError as failure:
                logger.warning("the checkpoint in progress is lost: %s", failure)


def _as_checkpoint_error(pending: PendingSave, error: BaseException) -> CheckpointError:
    if isinstance(error, CheckpointError):
        return error
    return CheckpointError(f"checkpoint {pending.folder} could not be written: {error!r}")
