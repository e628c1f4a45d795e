"""Calls of environments wait side by side; what raises, hangs or returns late is said."""

from __future__ import annotations

import threading
import time

from megatron_resrl.rollout.environments.running import AT_ONCE, Calls, Failure

LONG_S = 60.0
"""Patience that no test needs."""


def test_calls_return_values_by_key() -> None:
    calls = Calls(LONG_S)
    for number in range(2 * AT_ONCE + 1):
        calls.begin(number, lambda number=number: number * number)
    assert calls.collect(LONG_S) == {number: number**2 for number in range(2 * AT_ONCE + 1)}
    assert calls.collect(LONG_S) == {}


def test_calls_wait_side_by_side() -> None:
    together = threading.Barrier(AT_ONCE, timeout=LONG_S)
    calls = Calls(LONG_S)
    for number in range(AT_ONCE):
        calls.begin(number, together.wait)
    assert sorted(calls.collect(LONG_S).values()) == list(range(AT_ONCE))


def test_calls_start_no_more_than_fit() -> None:
    running, most, lock = 0, 0, threading.Lock()

    def count() -> None:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        time.sleep(0.01)
        with lock:
            running -= 1

    calls = Calls(LONG_S, at_once=2)
    for number in range(6):
        calls.begin(number, count)
    assert len(calls.collect(LONG_S)) == 6
    assert most <= 2


def test_calls_name_what_is_raised() -> None:
    def broken() -> None:
        raise KeyError("board")

    def leaving() -> None:
        raise SystemExit(3)

    calls = Calls(LONG_S)
    calls.begin(0, broken)
    calls.begin(1, leaving)
    assert calls.collect(LONG_S) == {
        0: Failure("raised", "raised KeyError: 'board'"),
        1: Failure("raised", "raised SystemExit: 3"),
    }


def test_calls_leave_a_hanging_call_behind() -> None:
    forever, first = threading.Event(), Calls(0.2, at_once=1)
    first.begin(7, forever.wait)
    first.begin(8, int)  # Has to wait until the other is given up.
    late = Failure("late", "did not return within reward.timeout_s = 0.2 seconds")
    assert first.collect(LONG_S) == {7: late, 8: 0}
    # Its key may be used again; what the late call returns is nobody's answer.
    go_on = threading.Event()
    first.begin(7, lambda: go_on.wait(LONG_S) and "second")
    forever.set()
    go_on.set()
    assert first.collect(LONG_S) in ({7: "second"}, {7: late})


def test_calls_return_what_is_there_when_patience_ends() -> None:
    slow = threading.Event()
    calls = Calls(LONG_S)
    calls.begin(0, int)
    calls.begin(1, slow.wait)
    found: dict = {}
    while not found:
        found = calls.collect(0.2)
    assert found == {0: 0}
    slow.set()
    assert calls.collect(LONG_S) == {1: True}
