"""Which waits of a main thread count as waits for other ranks."""

from __future__ import annotations

import contextlib
import ctypes
import subprocess
import sys
import threading
import types
from queue import Empty, Queue

import pytest
from ranks import REPOSITORY

from megatron_resrl.platform.watch import may_be_collective, place_of


def innermost_frame_of(action) -> types.FrameType:
    """Of a thread that is inside of it."""
    thread = threading.Thread(target=action, daemon=True)
    thread.start()
    frame, before = None, None
    while frame is None or (id(frame), frame.f_lasti) != before:
        before = frame and (id(frame), frame.f_lasti)
        threading.Event().wait(0.05)
        frame = sys._current_frames()[thread.ident]
    return frame


def in_c() -> None:
    ctypes.CDLL(None).sleep(5)


def in_queue() -> None:
    with contextlib.suppress(Empty):
        Queue().get(timeout=5)


def users_sleep() -> types.FunctionType:
    """A function of a file that a recipe names."""
    module = types.ModuleType("megatron_resrl_environment_mine")
    exec("import ctypes\ndef wait():\n    ctypes.CDLL(None).sleep(5)\n", vars(module))
    return module.wait


@pytest.mark.parametrize(
    ("action", "counts"),
    [
        (in_c, True),
        (lambda: threading.Event().wait(5), False),
        (in_queue, False),
        (lambda: subprocess.run(["sleep", "5"], check=False), False),
        (users_sleep(), False),
    ],
    ids=["in C", "event", "queue", "process", "user"],
)
def test_watch_knows_what_may_be_a_collective(action, counts):
    assert may_be_collective(innermost_frame_of(action)) is counts


def test_watch_place_has_function_file_and_line():
    assert place_of(innermost_frame_of(in_c)).startswith(f"in_c ({__file__}:")


WATCHED = """
import sys, threading, time
from megatron_resrl.platform.watch import MainThreadWatch
stuck = []
watch = MainThreadWatch(0.3, stuck.append, poll_s=0.05)
{block}
watch.close()
print(stuck)
"""


@pytest.mark.parametrize(
    ("block", "stuck"),
    [
        ("import ctypes; ctypes.CDLL(None).sleep(2)", True),
        ("until = time.monotonic() + 2\nwhile time.monotonic() < until: time.sleep(0.01)", False),
    ],
)
def test_watch_calls_only_a_main_thread_that_rests_stuck(block, stuck):
    done = subprocess.run(
        [sys.executable, "-c", WATCHED.format(block=block)],
        capture_output=True,
        text=True,
        env={"PYTHONPATH": str(REPOSITORY)},
        check=True,
    )
    assert (done.stdout.strip() != "[]") is stuck
