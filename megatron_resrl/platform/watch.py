"""Detects a main thread that waits without end for other ranks.

With NCCL a collective returns at once and the thread waits later, in the operation that needs the
result, without a time-out. Another thread can detect that the main thread runs no Python
instruction for longer than any collective may take: Python makes a pending call
(`Py_AddPendingCall`) between two instructions of the main thread.
"""

from __future__ import annotations

import ctypes
import sys
import sysconfig
import threading
from collections.abc import Callable, Iterator
from types import FrameType

_STANDARD = tuple(sysconfig.get_path(name) for name in ("stdlib", "platstdlib"))
_PACKAGES = ("site-packages", "dist-packages")
_USER_MODULES = "megatron_resrl_"
"""Prefix of the module names under which the user's files are imported."""


class MainThreadWatch:
    """Calls `on_stuck` once when the main thread has run no Python code for too long.

    It runs in a daemon thread. It ignores waits in Python's standard library, as in
    `Future.result`, which are for threads and processes and not for ranks; and the user's code.
    """

    def __init__(
        self, limit_s: float, on_stuck: Callable[[str], None], *, poll_s: float = 1.0
    ) -> None:
        """Starts the daemon thread.

        Args:
            limit_s: Seconds without a Python instruction after which the main thread is stuck.
            on_stuck: Called in the daemon thread with the place where the main thread is.
            poll_s: Seconds between two polls. While the process is stopped (SIGSTOP) there are no
                polls, so the pause does not count.
        """
        self._max_unmoved_polls = max(2, round(limit_s / poll_s))
        self._on_stuck = on_stuck
        self._poll_s = poll_s
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watch", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Ends the daemon thread."""
        self._closed.set()
        if threading.current_thread() is not self._thread:
            self._thread.join(2 * self._poll_s)

    def _run(self) -> None:
        main = threading.main_thread().ident
        turns = _add_pending_call()
        unmoved = 0
        while not self._closed.wait(self._poll_s):
            frame = sys._current_frames().get(main) if main is not None else None
            if frame is None:
                return
            if _turns != turns:
                turns = _add_pending_call()
                unmoved = 0
            else:
                unmoved = unmoved + 1 if may_be_collective(frame) else 0
            if unmoved >= self._max_unmoved_polls:
                self._on_stuck(place_of(frame))
                return
            del frame  # It would keep the locals of the main thread alive.


_turns = 0
"""Pending calls that the main thread has made."""


@ctypes.PYFUNCTYPE(ctypes.c_int, ctypes.c_void_p)
def _take_turn(_: int | None) -> int:
    global _turns
    _turns += 1
    return 0


def _add_pending_call() -> int | None:
    """Adds a pending call for the main thread.

    Returns:
        The number of pending calls made so far; None: Python's queue of calls was full.
    """
    before = _turns
    return before if ctypes.pythonapi.Py_AddPendingCall(_take_turn, None) == 0 else None


def may_be_collective(frame: FrameType) -> bool:
    """Whether a thread with this innermost frame may be waiting for other ranks."""
    file = frame.f_code.co_filename
    installed = any(f"/{name}/" in file for name in _PACKAGES)
    if not installed and file.startswith((*_STANDARD, "<frozen")):
        return False
    modules = (each.f_globals.get("__name__", "") for each in _outwards(frame))
    return not any(module.startswith(_USER_MODULES) for module in modules)


def place_of(frame: FrameType) -> str:
    """Function, file and line of a frame, and of the next outer frame of this package."""
    own = next(
        (each for each in _outwards(frame) if _package(each) == _package(sys._getframe())), frame
    )
    words = [_in_words(frame)]
    if own is not frame:
        words.append(f"called by {_in_words(own)}")
    return ", ".join(words)


def _in_words(frame: FrameType) -> str:
    return f"{frame.f_code.co_name} ({frame.f_code.co_filename}:{frame.f_lineno})"


def _package(frame: FrameType) -> str:
    return str(frame.f_globals.get("__name__", "")).partition(".")[0]


def _outwards(frame: FrameType | None) -> Iterator[FrameType]:
    while frame is not None:
        yield frame
        frame = frame.f_back
