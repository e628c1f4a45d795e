"""Makes the Python processes of a job stop where a test wants to find them: see `jobs.py: Stop`."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from functools import partial
from pathlib import Path

from fault_points import install

STOPS = "RESRL_TEST_STOPS"


def wait(mark: Path) -> None:
    """Says that the point is reached, and waits for a signal that this process handles."""
    ends = os.pipe()
    os.set_blocking(ends[1], False)
    before = signal.set_wakeup_fd(ends[1])
    mark.touch()
    os.read(ends[0], 1)
    signal.set_wakeup_fd(before)


def kill(mark: Path) -> None:
    """Ends this process as the kernel ends one for which there is no memory."""
    mark.touch()
    os.kill(os.getpid(), signal.SIGKILL)


ACTIONS: dict[str, Callable[[Path], None]] = {"wait": wait, "kill": kill, "go on": Path.touch}

if STOPS in os.environ and "SLURM_PROCID" in os.environ:
    restarts = int(os.environ.get("SLURM_RESTART_COUNT", "0"))
    for stop in json.loads(os.environ[STOPS]):
        if stop["start"] == restarts:
            action = partial(ACTIONS[stop["action"]], Path(stop["mark"]))
            install(action, stop["point"], stop["step"], stop["rank"])
