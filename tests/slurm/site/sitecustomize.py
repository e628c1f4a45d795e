"""Makes the Python processes of a job stop where a test wants to find it: see `stops.py`."""

from __future__ import annotations

import json
import os
import signal
from functools import partial
from pathlib import Path

from fault_points import install

STOPS = "RESRL_TEST_STOPS"


def stop(reached: Path) -> None:
    """Says that this point is reached, and waits for a signal that this process handles."""
    ends = os.pipe()
    os.set_blocking(ends[1], False)
    before = signal.set_wakeup_fd(ends[1])
    reached.touch()
    os.read(ends[0], 1)
    signal.set_wakeup_fd(before)


if STOPS in os.environ:
    for name, start, point, step, rank in json.loads(os.environ[STOPS]):
        if start == int(os.environ.get("SLURM_RESTART_COUNT", "0")):
            install(partial(stop, Path(name)), point, step, rank)
