"""Environments in processes of their own, which may crash and hang: they are ended and replaced."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from multiprocessing.connection import Connection
from typing import Any

from megatron_resrl.config.schema_questions import CodeConfig
from megatron_resrl.data.records import PromptRecord
from megatron_resrl.platform.ending import end_with_parent
from megatron_resrl.rollout.environments.environment import Observation
from megatron_resrl.rollout.environments.registry import get_environment
from megatron_resrl.rollout.environments.running import CallFailed, Failure, failure_of, late
from megatron_resrl.rollout.environments.seats import LocalSeat, Seat

START_S = 120.0
"""Seconds within which a process has found its environment."""
END_S = 2.0
"""Seconds that processes get to end by themselves."""
_READY = "ready"


class ProcessSeats:
    """Processes that are kept from one episode to the next; each has one episode at a time."""

    timeout_s: float | None = None

    def __init__(
        self,
        name: str,
        options: dict[str, Any],
        code: CodeConfig | None,
        *,
        count: int,
        timeout_s: float,
    ) -> None:
        """
        Args:
            name: See `get_environment`.
            options: See `get_environment`.
            code: See `get_environment`.
            count: Processes at most; they start when they are first needed.
            timeout_s: Seconds that each call may take.
        """
        self.count: int | None = count
        self._arguments = (name, options, code)
        self._call_s = timeout_s
        self._idle: list[_Process] = []
        self._all: list[_Process] = []

    def take(self) -> Seat:
        """See `Seats.take`: the kernel ends processes with the thread that calls this."""
        self._all = [each for each in self._all if not each.ended]
        process = self._idle.pop() if self._idle else None
        if process is None or process.ended:
            process = _Process(self._arguments, self._call_s)
            self._all.append(process)
        return _ProcessSeat(process, self._idle)

    def close(self) -> None:
        """Ends all processes."""
        for process in self._all:
            process.leave()
        deadline = time.monotonic() + END_S
        for process in self._all:
            process.end(deadline - time.monotonic())
        self._all, self._idle = [], []


class _Process:
    """A process, and the end of its pipe that is used by one thread at a time."""

    def __init__(self, arguments: tuple[Any, ...], timeout_s: float) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, *arguments), daemon=True)
        self._process.start()
        theirs.close()
        self._timeout_s = timeout_s
        self._started = False
        self.ended = False

    def call(self, method: str, *arguments: Any) -> Any:
        """The value of a method of the episode's environment.

        Raises:
            CallFailed: There is none. The process has been ended if it does not answer.
        """
        if not self._started:
            too_slow = Failure("late", f"did not start its process within {START_S:g} seconds")
            self._receive(START_S, too_slow)
            self._started = True
        try:
            self._pipe.send((method, arguments))
        except OSError:
            raise self._crashed() from None
        kind, value = self._receive(self._timeout_s, late(self._timeout_s))
        if kind == "failure":
            raise CallFailed(value)
        return value

    def leave(self) -> None:
        """Has the process end by itself, if it does not hang: nobody is there any more."""
        self.ended = True
        self._pipe.close()

    def end(self, seconds: float = 0.0) -> None:
        """Ends the process.

        Args:
            seconds: That it gets to end by itself.
        """
        self.leave()
        self._process.join(max(0.0, seconds))
        self._process.kill()
        self._process.join()

    def _receive(self, seconds: float, too_slow: Failure) -> Any:
        if not self._pipe.poll(seconds):
            self.end()
            raise CallFailed(too_slow)
        try:
            return self._pipe.recv()
        except (EOFError, OSError):
            raise self._crashed() from None

    def _crashed(self) -> CallFailed:
        self._process.join(END_S)
        code = self._process.exitcode
        self.end()
        how = f"signal {-code}" if code is not None and code < 0 else f"exit status {code}"
        return CallFailed(Failure("crashed", f"ended its process with {how}"))


class _ProcessSeat:
    """See `Seat`."""

    def __init__(self, process: _Process, idle: list[_Process]) -> None:
        self._process = process
        self._idle = idle

    def reset(self, record: PromptRecord, seed: tuple[int, ...]) -> str | None:
        return self._process.call("reset", record, seed)

    def step(self, action: str) -> Observation:
        return self._process.call("step", action)

    def close(self) -> None:
        """Ends the episode, and leaves the process to the next."""
        if self._process.ended:
            return
        try:
            self._process.call("close")
        except CallFailed:
            self._process.end()  # What else is broken in it nobody knows.
            raise
        self._idle.append(self._process)


def _serve(pipe: Connection, name: str, options: dict[str, Any], code: CodeConfig | None) -> None:
    """Answers calls until nobody is at the other end of the pipe."""
    # Signals that end a job are for the trainer, which ends this process in order.
    os.setsid()
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    end_with_parent()
    make = get_environment(name, options, code)
    pipe.send((_READY, None))
    seat = LocalSeat(make)
    while True:
        try:
            method, arguments = pipe.recv()
        except EOFError:
            return
        if method == "reset":
            seat = LocalSeat(make)
        try:
            answer = ("value", getattr(seat, method)(*arguments))
        except BaseException as error:  # SystemExit too: handed over to the caller.
            answer = ("failure", failure_of(error))
        pipe.send(answer)
