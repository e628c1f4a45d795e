"""Where a rank meets other ranks: what passes there may be the others' time.

The small collectives of a step are marked, and the reduction of gradients. Waits inside a model's
forward and backward, for tensor-, context- and expert-parallel ranks or another pipeline stage, are
not.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator

Recorder = Callable[[], contextlib.AbstractContextManager[None]]
"""Times a block as a wait."""

_recorders: list[Recorder] = []


@contextlib.contextmanager
def meeting() -> Iterator[None]:
    """Marks a block of the main thread in which this rank may wait for others."""
    if not _recorders or threading.current_thread() is not threading.main_thread():
        yield
        return
    with _recorders[-1]():
        yield


@contextlib.contextmanager
def meetings_recorded(recorder: Recorder) -> Iterator[None]:
    """Calls `recorder` for each meeting while the block runs."""
    _recorders.append(recorder)
    try:
        yield
    finally:
        _recorders.remove(recorder)
