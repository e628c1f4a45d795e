"""How a process ends: with its parent, and even if its clean-up hangs."""

from __future__ import annotations

import contextlib
import ctypes
import faulthandler
import json
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from typing import Any

from megatron_resrl.errors import InputError, RunError, exit_status
from megatron_resrl.platform.places import own_place

ENDING_S = 20.0
"""Seconds that closing connections, helper processes and threads may take."""

_PR_SET_PDEATHSIG = 1
"""From Linux's sys/prctl.h: which signal a process gets when its parent has died."""
_FLUSH_S = 2.0
"""Seconds for the last output: its reader may hang as well."""


def end_with_parent() -> None:
    """Lets the kernel kill this process when the thread that started it ends; on Linux only."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


class Deadline:
    """Ends the process with `os._exit` unless it is cancelled within `ENDING_S` of its start.

    Connections to dead ranks, pools and threads may wait for ever when they are closed; a rank
    that stays keeps the launcher from ending or restarting the job.
    """

    def __init__(self) -> None:
        self._timers: list[threading.Timer] = []

    def start(self, error: BaseException | None) -> None:
        """Starts counting.

        Args:
            error: The error that ends the process; printed and turned into the exit status if time
                runs out. None: no error so far.
        """
        # Both now: since Python 3.12 an interpreter that is ending starts no more threads.
        self._timers = [
            _started_timer(ENDING_S, _too_slow, error),
            _started_timer(ENDING_S + _FLUSH_S, os._exit, _status(error)),
        ]

    def cancel(self) -> None:
        """Stops the timers, because the clean-up is done.

        Joins their threads, so that they drop the error before the interpreter ends: frames of
        the error hold process groups, whose late destruction would abort the process.
        """
        for timer in self._timers:
            timer.cancel()
            timer.join()
        self._timers = []


@contextlib.contextmanager
def process_ends_with_block() -> Iterator[None]:
    """Around the outermost block of a process: ends the process soon after the block."""
    try:
        yield
    finally:
        error = sys.exc_info()[1]
        if error is not None and not isinstance(error, SystemExit):
            record_failure(error)
        Deadline().start(error)


def record_failure(error: BaseException) -> None:
    """Writes why this rank ends to the file that TORCHELASTIC_ERROR_FILE names, if it is set.

    torchrun shows the rank that failed first as the root cause, with this text. A job's script
    decides by kind, place and lost hosts whether another start is worth it, and where.
    """
    path = os.environ.get("TORCHELASTIC_ERROR_FILE")
    if not path:
        return
    known = isinstance(error, (InputError, RunError, KeyboardInterrupt))
    text = str(error) if known else f"{type(error).__name__}: {error}"
    extra: dict[str, Any] = {"timestamp": str(int(time.time())), "time": time.time()}
    extra |= {"kind": _kind(error), "place": own_place().to_json()}
    if isinstance(error, RunError):
        extra["lost_hosts"] = list(error.lost_hosts)
    if not known:
        extra["py_callstack"] = "".join(traceback.format_exception(error))
    try:
        with open(path, "w", encoding="utf-8") as file:
            json.dump({"message": {"message": text, "extraInfo": extra}}, file)
    except OSError as problem:
        print(f"torchrun's error file cannot be written: {problem}", file=sys.stderr)


def _kind(error: BaseException) -> str:
    """`input`: another start would fail, too; `run`: explains itself; `stopped`; or `crash`."""
    kinds = {KeyboardInterrupt: "stopped", InputError: "input", RunError: "run"}
    return next((kind for cls, kind in kinds.items() if isinstance(error, cls)), "crash")


def end_process(error: BaseException) -> None:
    """Ends the process from any thread, now, because its main thread cannot.

    Args:
        error: The reason; printed, and turned into the exit status.
    """
    _started_timer(_FLUSH_S, os._exit, _status(error))
    _end(error, "its main thread does not move; the process ends")


def _too_slow(error: BaseException | None) -> None:
    _end(
        error,
        f"closing connections and helper processes took more than {ENDING_S:.0f} s; the process "
        "ends without",
    )


def _end(error: BaseException | None, why: str) -> None:
    """Ends the process after its last output; a timer has been started, as its reader may hang."""
    _say(error, why)
    os._exit(_status(error))


def _status(error: BaseException | None) -> int:
    return 1 if error is None else exit_status(error)


def _started_timer(seconds: float, call: Callable[..., Any], argument: Any) -> threading.Timer:
    timer = threading.Timer(seconds, call, [argument])
    timer.daemon = True
    timer.start()
    return timer


def _say(error: BaseException | None, why: str) -> None:
    if error is not None and not isinstance(error, SystemExit):
        record_failure(error)
    if isinstance(error, (InputError, RunError)):
        print(error, file=sys.stderr)
    elif error is not None and not isinstance(error, SystemExit):
        traceback.print_exception(error)
    print(f"{own_place()}: {why}. It was here:", file=sys.stderr, flush=True)
    faulthandler.dump_traceback()
    sys.stdout.flush()
