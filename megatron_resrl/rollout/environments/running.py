"""Steps of environments, with a time limit: what goes wrong in one ends the run with its name."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from time import monotonic
from typing import Any

from megatron_resrl.errors import RunError

AT_ONCE = 32
"""Calls that run side by side, so that tools that wait for something wait together."""


class EnvironmentFailed(RunError):
    """An environment raised, hung, or answered something else than an observation."""

    common = True


@dataclass(frozen=True)
class Call:
    """One call of an environment's method, and what to call it in errors."""

    function: Callable[[], Any]
    where: str
    """E.g. `step, turn 2 of sample 1 of prompt 7 of gsm8k`."""


def run_calls(name: str, calls: Sequence[Call], timeout_s: float) -> list[Any]:
    """Runs calls, up to `AT_ONCE` side by side, in threads.

    A hanging thread cannot be stopped: the run ends, and the thread with it. Code that holds
    Python's lock for good (a C function that hangs) cannot be noticed from within the process.

    Args:
        name: Of the environment.
        calls: Any number.
        timeout_s: Seconds that each may take; they share the processor.

    Returns:
        What they returned, in order.

    Raises:
        EnvironmentFailed: A call raised or did not return in time; the first one, in order.
    """
    returned: list[Any] = []
    for start in range(0, len(calls), AT_ONCE):
        running = [_Running(call.function) for call in calls[start : start + AT_ONCE]]
        for thread in running:
            thread.start()
        deadline = monotonic() + timeout_s
        for call, thread in zip(calls[start:], running, strict=False):
            thread.join(max(0.0, deadline - monotonic()))
            if thread.is_alive():
                problem = f"did not return within reward.timeout_s = {timeout_s:g} seconds"
                raise failure_of(name, call.where, problem)
            if thread.error is not None:
                error = thread.error
                problem = f"raised {type(error).__name__}: {error}"
                raise failure_of(name, call.where, problem) from error
            returned.append(thread.value)
    return returned


def failure_of(name: str, where: str, problem: str) -> EnvironmentFailed:
    """The error of an environment, by its name, and of the call `where` it failed."""
    return EnvironmentFailed(f"rollout.environment = {name!r} {problem} ({where})")


class _Running(threading.Thread):
    """A call under way; a daemon, so that one that hangs does not keep the process alive."""

    def __init__(self, function: Callable[[], Any]) -> None:
        super().__init__(daemon=True)
        self._function = function
        self.value: Any = None
        self.error: BaseException | None = None

    def run(self) -> None:
        try:
            self.value = self._function()
        except BaseException as error:  # SystemExit too: handed over to the caller.
            self.error = error
