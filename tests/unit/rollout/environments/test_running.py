"""A failing or hanging environment ends the run with its name, the sample and the cause."""

from __future__ import annotations

import time

import pytest

from megatron_resrl.rollout.environments.running import (
    AT_ONCE,
    Call,
    EnvironmentFailed,
    run_calls,
)


def test_run_calls_keeps_the_order_of_results() -> None:
    calls = [Call(lambda number=number: number, "") for number in range(2 * AT_ONCE + 1)]
    assert run_calls("mine", calls, 5.0) == list(range(len(calls)))


def test_run_calls_lets_waiting_calls_wait_together() -> None:
    began = time.monotonic()
    run_calls("mine", [Call(lambda: time.sleep(0.3), "")] * AT_ONCE, 5.0)
    assert time.monotonic() - began < 0.3 * AT_ONCE / 2


def test_run_calls_names_what_is_raised() -> None:
    def broken() -> None:
        raise KeyError("board")

    message = r"rollout.environment = 'mine' raised KeyError: 'board' \(step, turn 2\)"
    with pytest.raises(EnvironmentFailed, match=message):
        run_calls("mine", [Call(int, "step, turn 1"), Call(broken, "step, turn 2")], 5.0)


def test_run_calls_ends_a_hanging_call_in_time() -> None:
    began = time.monotonic()
    with pytest.raises(EnvironmentFailed, match=r"did not return within reward\.timeout_s = 0\.2"):
        run_calls("mine", [Call(lambda: time.sleep(3), "step")], 0.2)
    assert time.monotonic() - began < 2
