"""Where a step's time goes, phase by phase."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from megatron_resrl.platform.clock import Clock, HostClock
from megatron_resrl.platform.memory_peaks import MemoryPeaks


class PhaseTimers:
    """Seconds per phase of a step; every moment counts for one phase only.

    Time in an inner phase is not counted in the phase around it, so that the phases and `other`
    always add up to the step. The borders of phases are marked only; their distances are read when
    the step ends, so that no border makes the host wait for the device.

    Args:
        clock: Tells the time; None: the host's.
        memory: Measures memory at the borders of phases; None: nobody does.

    Attributes:
        waited: Phase -> seconds of it in `waiting`, in the step that `collect` returned last.
    """

    def __init__(self, clock: Clock | None = None, memory: MemoryPeaks | None = None) -> None:
        self._clock = clock or HostClock()
        self._memory = memory
        self._peaks: dict[str, int] = {}
        self._spans: list[tuple[str, Any, Any, bool]] = []
        self._open: list[str] = []
        self._waits = 0
        self.waited: dict[str, float] = {}
        self._mark = self._clock.mark()

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Counts the block's time for `name`, except for phases opened inside it."""
        self._account()
        self._account_memory()
        self._open.append(name)
        try:
            yield
        finally:
            self._account()
            self._account_memory()
            self._open.pop()

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Counts the block's time for the open phase, and as a wait for other ranks."""
        self._account()
        self._waits += 1
        try:
            yield
        finally:
            self._account()
            self._waits -= 1

    def current_phase(self) -> str:
        """The innermost open phase; "other" outside all of them. For time-out messages."""
        return self._open[-1] if self._open else "other"

    def collect(self) -> dict[str, float]:
        """Ends the step's accounting and starts the next one's. Waits for the device once.

        Returns:
            Seconds per phase since the last call (or since creation), in the order in which the
            phases first ended, and "other" last: the time outside all phases.
        """
        self._account()
        seconds: dict[str, float] = {}
        self.waited = {}
        for name, first, last, waits in self._spans:
            passed = self._clock.seconds(first, last)
            seconds[name] = seconds.get(name, 0.0) + passed
            if waits:
                self.waited[name] = self.waited.get(name, 0.0) + passed
        self._spans = []
        other = seconds.pop("other", 0.0)
        return {**seconds, "other": other}

    def take_peaks(self) -> dict[str, int]:
        """Bytes of memory at the peak of each phase since the last call (or since creation).

        Returns:
            By phase, "other" outside all of them; what an inner phase takes does not count for the
            phase around it. Empty where nobody measures memory.
        """
        self._account_memory()
        peaks, self._peaks = self._peaks, {}
        return peaks

    def _account_memory(self) -> None:
        """Counts the peak since the last border of phases for the innermost open phase."""
        if self._memory is not None:
            name = self.current_phase()
            self._peaks[name] = max(self._peaks.get(name, 0), self._memory.take())

    def _account(self) -> None:
        """Counts the time since the last mark for the innermost open phase."""
        now = self._clock.mark()
        self._spans.append((self.current_phase(), self._mark, now, self._waits > 0))
        self._mark = now
