"""A process that has something hanging ends in time, with its status and its reason."""

from __future__ import annotations

import subprocess
import sys
import weakref

import pytest

from megatron_resrl.platform.ending import Deadline

SCRIPT = """
import sys, threading
from megatron_resrl.errors import InputError, RunError
from megatron_resrl.platform import ending

ending.ENDING_S = 1.0
threading.Thread(target=threading.Event().wait).start()  # Python would wait for it for ever.
with ending.process_ends_with_block():
    {ending}
"""


@pytest.mark.parametrize(
    ("ending", "status", "said"),
    [
        ("sys.exit(0)", 0, ""),
        ("sys.exit(143)", 143, ""),
        ("raise InputError('reward.function = 3')", 2, "reward.function = 3"),
        ("raise MemoryError('too large')", 1, "MemoryError: too large"),
    ],
)
def test_ending_ends_a_process_whose_thread_never_does(ending: str, status: int, said: str) -> None:
    done = _run(SCRIPT.format(ending=ending))
    assert done.returncode == status
    assert said in done.stderr
    assert "took more than 1 s; the process ends without" in done.stderr
    assert "in wait" in done.stderr  # Where it hung.


def test_deadline_does_not_end_what_closes_in_time() -> None:
    done = _run(
        """
import time
from megatron_resrl.platform import ending

ending.ENDING_S = 0.5
deadline = ending.Deadline()
deadline.start(None)
deadline.cancel()
time.sleep(1)
print("still here")
"""
    )
    assert done.returncode == 0
    assert done.stdout == "still here\n"


def _run(script: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=600, check=False
    )


def test_deadline_met_in_time_lets_go_of_the_error() -> None:
    class Failure(ValueError):
        """One that can be watched."""

    deadline = Deadline()
    error = Failure()
    gone = weakref.ref(error)
    deadline.start(error)
    del error
    deadline.cancel()
    assert gone() is None
