"""Where a step's time goes, phase by phase."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator


class PhaseTimers:
    """Wall-clock seconds per phase of a step; every moment counts for one phase only.

    Time in an inner phase is not counted in the phase around it, so that the phases and `other`
    always add up to the step.

    Args:
        synchronize: Called at the borders of phases, e.g. `torch.cuda.synchronize`: work queued
            on a device then counts for the phase that queued it. None: the clock alone.
    """

    def __init__(self, synchronize: Callable[[], None] | None = None) -> None:
        self._synchronize = synchronize or (lambda: None)
        self._seconds: dict[str, float] = {}
        self._open: list[str] = []
        self._mark = time.perf_counter()

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Counts the block's time for `name`, except for phases opened inside it."""
        self._account()
        self._open.append(name)
        try:
            yield
        finally:
            self._account()
            self._open.pop()

    def current_phase(self) -> str:
        """The innermost open phase; "other" outside all of them. For time-out messages."""
        return self._open[-1] if self._open else "other"

    def collect(self) -> dict[str, float]:
        """Ends the step's accounting and starts the next one's.

        Returns:
            Seconds per phase since the last call (or since creation), in the order in which the
            phases first ended, and "other" last: the time outside all phases.
        """
        self._account()
        seconds, self._seconds = self._seconds, {}
        other = seconds.pop("other", 0.0)
        return {**seconds, "other": other}

    def _account(self) -> None:
        """Adds the time since the last mark to the innermost open phase."""
        self._synchronize()
        now = time.perf_counter()
        name = self.current_phase()
        self._seconds[name] = self._seconds.get(name, 0.0) + now - self._mark
        self._mark = now
