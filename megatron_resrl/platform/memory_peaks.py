"""The most memory that a process has taken: since it was last asked, or ever."""

from __future__ import annotations

import os
import resource
import sys
from typing import Protocol

import torch

_RESET_PEAK = b"5"
"""What Linux takes for: the resident set's peak is its size of now (`man 5 proc`)."""


class MemoryPeaks(Protocol):
    """Measures the peak of each stretch of time."""

    def take(self) -> int:
        """Bytes at the peak since the last call; the next stretch starts with those of now."""
        ...


class ResidentPeaks:
    """The resident set of this process, as Linux counts it: VmHWM, which can be set back."""

    def __init__(self) -> None:
        """
        Raises:
            OSError: The system does not tell, or does not let the peak be set back.
        """
        self._status = os.open("/proc/self/status", os.O_RDONLY | os.O_CLOEXEC)
        try:
            self._reset = os.open("/proc/self/clear_refs", os.O_WRONLY | os.O_CLOEXEC)
        except OSError:
            os.close(self._status)
            raise
        self.take()

    def take(self) -> int:
        """See `MemoryPeaks`."""
        _, _, rest = os.pread(self._status, 1 << 14, 0).partition(b"VmHWM:")
        os.write(self._reset, _RESET_PEAK)
        return int(rest.split(maxsplit=1)[0]) * 1024


class CudaPeaks:
    """What torch's allocator has given out on this rank's CUDA device."""

    def take(self) -> int:
        """See `MemoryPeaks`."""
        peak = torch.cuda.max_memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        return peak


def memory_peaks() -> MemoryPeaks | None:
    """Measures what this process computes with; None: the system only knows the peak of all time.

    That is so outside of Linux, and in containers without a writable /proc.
    """
    if torch.cuda.is_available():
        return CudaPeaks()
    try:
        return ResidentPeaks()
    except OSError:
        return None


def largest_resident_set() -> int:
    """Bytes of this process's resident set at its peak, of all time unless it was set back."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
