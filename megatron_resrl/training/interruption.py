"""A run that a signal or its time budget asks to end finishes its step, saves, and says so.

SIGTERM, SIGINT (Ctrl-C) and SIGUSR1 to any rank count for all. A handler only takes a note; the
ranks compare their notes when a step is done. Ctrl-C before the first step ends the run at
once: there is nothing to save.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import time
from multiprocessing import resource_tracker
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

import torch.distributed as dist

from megatron_resrl.errors import RunError
from megatron_resrl.platform.distributed import max_over_ranks
from megatron_resrl.platform.phases import current_step, named_phase
from megatron_resrl.platform.run_files import INTERRUPTED, write_whole

SIGNALS = (signal.SIGUSR1, signal.SIGINT, signal.SIGTERM)
"""SIGUSR1: the time limit is near. SIGINT: Ctrl-C. SIGTERM: end now, as Slurm, Kubernetes and
torchrun say it. Of several signals the last one in this list counts."""

TIME_BUDGET = "time_budget"
"""Reason of an end that no signal asked for; any signal counts before it."""

SAME_REQUEST_S = 5.0
"""Seconds within which a second SIGTERM is the same request: Slurm signals torchrun and its ranks,
and torchrun signals the ranks again. The same holds for Ctrl-C, which reaches all processes of a
terminal."""

_REQUESTS = (None, TIME_BUDGET, *SIGNALS)

_NOTED: dict[int, str] = {
    signal.SIGINT: "Ctrl-C: this step is finished and saved, then the run ends; "
    "Ctrl-C again ends it now\n"
}
"""Signal -> what is printed as soon as it arrives."""


class Interrupted(RunError):
    """The run ended early because it was asked to; its last step is saved."""

    common = True

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


class Interruption(contextlib.AbstractContextManager):
    """Takes note of signals while the block runs; every rank opens one.

    Args:
        output_dir: Of the run.
        exit_code: Status of an interrupted run's processes; None: 143 (128 + 15) after SIGTERM, 130
            after SIGINT, and 0 after SIGUSR1 or at the end of the time budget, so that launchers do
            not take a planned end for a failure.
    """

    def __init__(self, output_dir: Path, exit_code: int | None) -> None:
        self._file = output_dir / INTERRUPTED
        self._exit_code = exit_code
        # Highest-priority request to this rank, and to any rank: its place in _REQUESTS, 0 for
        # none. A SIGTERM that other ranks got before may still be this rank's first.
        self._received = 0
        self._agreed = 0
        self._first_at = 0.0
        self._previous: dict[signal.Signals, Any] = {}

    def requested(self, *, out_of_time: bool = False) -> bool:
        """Whether any rank was asked to end; the same answer on all. Collective.

        Args:
            out_of_time: The run's time budget is used up, as this rank sees it.
        """
        own = max(self._received, _REQUESTS.index(TIME_BUDGET) if out_of_time else 0)
        with named_phase("interruption"):
            self._agreed = max_over_ranks(own)
        return self._agreed > 0

    def end(self, step: int, checkpoint: Path) -> NoReturn:
        """Writes down that the run stands interrupted, and ends it. Collective.

        Args:
            step: Last step done.
            checkpoint: The folder that it is saved in.

        Raises:
            Interrupted: Always.
        """
        request = _REQUESTS[self._agreed]
        name = request.name if isinstance(request, signal.Signals) else None
        reason = name or TIME_BUDGET
        if dist.get_rank() == 0:
            note = {"reason": reason, "signal": name, "step": step, "checkpoint": str(checkpoint)}
            self._file.parent.mkdir(parents=True, exist_ok=True)
            write_whole(self._file, note | {"time": time.time()})
        with named_phase("interruption"):
            dist.barrier()  # A launcher may end all ranks as soon as one has ended.
        status = self._exit_code
        if status is None:
            status = 128 + request if request in (signal.SIGINT, signal.SIGTERM) else 0
        raise Interrupted(
            f"{reason}: the run ended after step {step}, which is saved in {checkpoint}; "
            "the same command continues it",
            status,
        )

    def __enter__(self) -> Interruption:
        if os.environ.get("RANK", "0") == "0":  # Process groups come later.
            self._file.unlink(missing_ok=True)
        _start_resource_tracker()
        if threading.current_thread() is threading.main_thread():  # Python's rule for handlers.
            # Also where the signal was ignored, as by the children of a shell with `trap "" USR1`.
            self._previous = {each: signal.signal(each, self._note) for each in SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for each, handler in self._previous.items():
            signal.signal(each, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        place = _REQUESTS.index(number)
        if number == signal.SIGINT and current_step() is None:
            raise KeyboardInterrupt
        if number != signal.SIGUSR1 and self._received == place:
            repeated = number == signal.SIGTERM or "TORCHELASTIC_RUN_ID" in os.environ
            if not repeated or now - self._first_at > SAME_REQUEST_S:
                signal.signal(number, signal.SIG_DFL)
                if number == signal.SIGINT:
                    raise KeyboardInterrupt
                os.kill(os.getpid(), number)
            return
        if number in _NOTED and place > self._received and os.environ.get("RANK", "0") == "0":
            os.write(sys.stderr.fileno(), _NOTED[number].encode())
        self._received, self._first_at = max(self._received, place), now


def _start_resource_tracker() -> None:
    """Starts multiprocessing's helper process, which graders need, out of reach of SIGUSR1.

    It ignores SIGINT and SIGTERM by itself. Slurm gives a signal to all processes of a job.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
    try:
        resource_tracker.ensure_running()  # Inherits the mask.
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
