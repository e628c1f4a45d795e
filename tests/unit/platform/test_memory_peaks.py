"""Peaks of a process's memory."""

from __future__ import annotations

import gc
import os

import numpy as np
import pytest

from megatron_resrl.platform.memory_peaks import (
    ResidentPeaks,
    largest_resident_set,
    memory_peaks,
)

SIZE = 64 << 20
NOISE = 16 << 20
"""Bytes that the interpreter and its allocator may take or give back meanwhile."""


@pytest.fixture
def peaks() -> ResidentPeaks:
    try:
        return ResidentPeaks()
    except OSError as error:
        pytest.skip(f"the system cannot set a peak back: {error}")


def test_resident_peaks_see_memory_that_is_gone(peaks: ResidentPeaks) -> None:
    # What earlier tests have left is given back when it is needed, or by the collector.
    gc.collect()
    np.ones(SIZE, dtype=np.uint8)
    peaks.take()
    before = peaks.take()
    np.ones(SIZE, dtype=np.uint8)  # Freed at once.
    assert peaks.take() - before == pytest.approx(SIZE, abs=NOISE)
    assert peaks.take() - before == pytest.approx(0, abs=NOISE)
    assert largest_resident_set() == pytest.approx(before, abs=NOISE)


def test_memory_peaks_are_none_where_peaks_cannot_be_set_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    real = os.open

    def read_only(path: str, flags: int) -> int:
        if path == "/proc/self/clear_refs":
            raise PermissionError(13, "Permission denied", path)
        return real(path, flags)

    monkeypatch.setattr(os, "open", read_only)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert memory_peaks() is None
