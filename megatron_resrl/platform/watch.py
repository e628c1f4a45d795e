"""Is the main thread in a wait that does not end?

With NCCL a collective returns at once and the thread waits later, in whatever needs its result,
with no time-out of its own. What can be seen from another thread is that the interpreter gets no
turn in it for longer than any collective may take: a call that is left for the main thread
(`Py_AddPendingCall`) is made between two instructions of Python.
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
"""Start of the names under which files of the user's are imported."""


class MainThreadWatch:
    """Tells once when the main thread has had no turn for too long; a daemon thread.

    Not counted are waits for other threads and processes (the innermost frame is one of Python's
    own library, as in `Future.result`), which no rank takes part in, and whatever code of the
    user's does.
    """

    def __init__(
        self, limit_s: float, on_stuck: Callable[[str], None], *, poll_s: float = 1.0
    ) -> None:
        """Begins to look.

        Args:
            limit_s: Seconds without a turn that are too many.
            on_stuck: Called from the watching thread with where the main thread is.
            poll_s: Seconds between looks. A process that is stopped and goes on has not been
                looked at meanwhile, and its pause does not count.
        """
        self._looks = max(2, round(limit_s / poll_s))
        self._on_stuck = on_stuck
        self._poll_s = poll_s
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watch", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Ends the looks."""
        self._closed.set()
        if threading.current_thread() is not self._thread:
            self._thread.join(2 * self._poll_s)

    def _run(self) -> None:
        main = threading.main_thread().ident
        seen = _leave_call()
        unmoved = 0
        while not self._closed.wait(self._poll_s):
            frame = sys._current_frames().get(main) if main is not None else None
            if frame is None:
                return
            if _turns != seen:
                seen = _leave_call()
                unmoved = 0
            else:
                unmoved = unmoved + 1 if may_be_collective(frame) else 0
            if unmoved >= self._looks:
                self._on_stuck(place_of(frame))
                return
            del frame  # It would keep the locals of the main thread alive.


_turns = 0
"""Calls that the main thread has made for a watch."""


@ctypes.PYFUNCTYPE(ctypes.c_int, ctypes.c_void_p)
def _take_turn(_: int | None) -> int:
    global _turns
    _turns += 1
    return 0


def _leave_call() -> int | None:
    """Leaves a call for the main thread.

    Returns:
        The number of calls that it has made so far; None: there was no room for another one.
    """
    before = _turns
    return before if ctypes.pythonapi.Py_AddPendingCall(_take_turn, None) == 0 else None


def may_be_collective(frame: FrameType) -> bool:
    """Whether a thread whose innermost frame this is may wait for other ranks."""
    file = frame.f_code.co_filename
    installed = any(f"/{name}/" in file for name in _PACKAGES)
    if not installed and file.startswith((*_STANDARD, "<frozen")):
        return False
    modules = (each.f_globals.get("__name__", "") for each in _outwards(frame))
    return not any(module.startswith(_USER_MODULES) for module in modules)


def place_of(frame: FrameType) -> str:
    """Function, file and line of a frame, and the next one of this package around it."""
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
