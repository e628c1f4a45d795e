"""Ends a run in order before its time is over."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

_STEPS = 10
"""Of so many steps the longest one says how long the next may take."""


class TimeBudget:
    """Whether the time that is left holds one more step and its save; one rank decides for all.

    The next step is taken to last as long as the longest of the last ten, evaluations included,
    and its save as long as the longest so far.
    """

    def __init__(self, budget_s: float | None, elapsed: Callable[[], float]) -> None:
        """
        Args:
            budget_s: Seconds of the whole job; None: unlimited.
            elapsed: Seconds since the job began.
        """
        self._budget_s = budget_s
        self._elapsed = elapsed
        self._step_s: deque[float] = deque(maxlen=_STEPS)
        self._save_s = 0.0
        self._last = elapsed()

    def begin(self) -> None:
        """The first step begins: what came before it is not a step's time."""
        self._last = self._elapsed()

    def finish_step(self, save_s: float) -> None:
        """A step is done.

        Args:
            save_s: Seconds that saves have taken since the step before, in training's way and
                beside it.
        """
        now = self._elapsed()
        self._step_s.append(now - self._last)
        self._last = now
        self._save_s = max(self._save_s, save_s)

    def is_over(self) -> bool:
        """Whether another step may take too long."""
        if self._budget_s is None:
            return False
        needed = max(self._step_s, default=0.0) + self._save_s
        return self._elapsed() + needed > self._budget_s
