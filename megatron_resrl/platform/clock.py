"""Clocks that time what a device does without waiting for it."""

from __future__ import annotations

import time
from typing import Any, Protocol

import torch


class Clock(Protocol):
    """Takes marks, and tells later how far apart they are."""

    def mark(self) -> Any:
        """The present moment. Waits for nothing."""
        ...

    def seconds(self, earlier: Any, later: Any) -> float:
        """Between two marks. May wait until the device has come to the later one."""
        ...


class HostClock:
    """The host's time."""

    def mark(self) -> float:
        """See `Clock`."""
        return time.perf_counter()

    def seconds(self, earlier: float, later: float) -> float:
        """See `Clock`."""
        return later - earlier


class CudaClock:
    """When the current stream of the CUDA device comes to a mark.

    Work that is queued between two marks counts between them, however late the device does it. A
    stream without work comes to a mark at once, so that the host's own work counts, too.
    """

    def mark(self) -> torch.cuda.Event:
        """See `Clock`."""
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def seconds(self, earlier: torch.cuda.Event, later: torch.cuda.Event) -> float:
        """See `Clock`."""
        later.synchronize()
        return earlier.elapsed_time(later) / 1e3


def device_clock() -> Clock:
    """The clock of what this machine computes with."""
    return CudaClock() if torch.cuda.is_available() else HostClock()
