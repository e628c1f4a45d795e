"""Calls of environments, which wait side by side and are late after a time."""

from __future__ import annotations

import itertools
import queue
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from time import monotonic
from typing import Any, Literal

from megatron_resrl.errors import RunError

AT_ONCE = 32
"""Calls that run side by side, so that tools that wait for something wait together."""

Reason = Literal["raised", "malformed", "late", "crashed"]
"""`malformed`: it returned something else than it should; `crashed`: its process ended."""


class EnvironmentFailed(RunError):
    """An environment raised, hung, crashed, or answered something else than an observation."""

    common = True


@dataclass(frozen=True)
class Failure:
    """What a call came to instead of a value."""

    reason: Reason
    problem: str
    """For people, e.g. `raised KeyError: 'board'`."""


class CallFailed(Exception):
    """A call that knows why it failed."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.problem)
        self.failure = failure


def failure_of(error: BaseException) -> Failure:
    """What an exception of an environment means."""
    if isinstance(error, CallFailed):
        return error.failure
    return Failure("raised", f"raised {type(error).__name__}: {error}")


def late(timeout_s: float) -> Failure:
    """What a call is that took longer than `timeout_s`."""
    return Failure("late", f"did not return within reward.timeout_s = {timeout_s:g} seconds")


class Calls:
    """Calls of one rank, each in a thread, that are collected as they return.

    A hanging thread cannot be stopped: it is left behind. Code that holds Python's lock for good (a
    C function that hangs) cannot be noticed from within the process.
    """

    def __init__(self, timeout_s: float | None, at_once: int = AT_ONCE) -> None:
        """
        Args:
            timeout_s: Seconds that each may take; None: they bound themselves.
            at_once: Calls that run side by side.
        """
        self._timeout_s = timeout_s
        self._at_once = at_once
        self._waiting: deque[tuple[int, Callable[[], Any]]] = deque()
        self._running: dict[int, tuple[int, float]] = {}
        """Number of a call that runs -> its key, and when it is late."""
        self._numbers = itertools.count()
        self._returned: queue.SimpleQueue[tuple[int, Any]] = queue.SimpleQueue()

    def begin(self, key: int, function: Callable[[], Any]) -> None:
        """Starts a call, as soon as there is room.

        Args:
            key: Names the call; no other of this name is under way.
            function: Returns a value, or raises.
        """
        self._waiting.append((key, function))
        self._start()

    def collect(self, patience_s: float) -> dict[int, Any]:
        """Waits until all calls have returned or are late, or `patience_s` seconds are over.

        Returns:
            Key -> value or `Failure`, of those that have returned or are late and were not
            collected before.
        """
        end = monotonic() + patience_s
        found: dict[int, Any] = {}
        while self._running:
            next_event = min([end, *(deadline for _, deadline in self._running.values())])
            try:
                # What has returned is taken even where patience is over.
                number, value = self._returned.get(timeout=max(0.0, next_event - monotonic()))
            except queue.Empty:
                found |= self._take_late()
                if monotonic() >= end:
                    break
            else:
                if number in self._running:  # A late one that returns is no longer waited for.
                    found[self._running.pop(number)[0]] = value
            self._start()
        return found

    def _take_late(self) -> dict[int, Failure]:
        """The calls that are late from now on."""
        now, found = monotonic(), {}
        for number, (key, deadline) in list(self._running.items()):
            if self._timeout_s is not None and deadline <= now:
                found[key] = late(self._timeout_s)
                del self._running[number]
        return found

    def _start(self) -> None:
        while self._waiting and len(self._running) < self._at_once:
            key, function = self._waiting.popleft()
            limit = float("inf") if self._timeout_s is None else self._timeout_s
            number = next(self._numbers)
            self._running[number] = key, monotonic() + limit
            arguments = (number, function, self._returned)
            threading.Thread(target=_run, args=arguments, daemon=True).start()


def _run(number: int, function: Callable[[], Any], returned: queue.SimpleQueue) -> None:
    try:
        value = function()
    except BaseException as error:  # SystemExit too: handed over to the caller.
        value = failure_of(error)
    returned.put((number, value))
