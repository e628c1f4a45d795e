"""Grades responses in processes of their own: a reward function that hangs costs one score."""

from __future__ import annotations

import ctypes
import math
import multiprocessing
import os
import signal
import sys
import traceback
from collections.abc import Sequence
from concurrent.futures import TimeoutError
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from typing import Any, SupportsFloat

from pebble import ProcessExpired, ProcessPool

from megatron_resrl.errors import InputError
from megatron_resrl.platform.phases import progress
from megatron_resrl.rewards.registry import RewardFunction, absolute_name, get_reward

SHOWN_CHARACTERS = 600
"""Of each part of a sample in an error message."""

PR_SET_PDEATHSIG = 1
"""From Linux's sys/prctl.h: which signal a process gets when its parent has died."""


@dataclass(frozen=True)
class GradingTask:
    """One response to grade: the arguments of a `RewardFunction`, and what to call it."""

    response: str
    ground_truth: Any
    prompt: str
    data_source: str
    extra: dict[str, Any]
    sample: str
    """Names the sample in errors."""


@dataclass(frozen=True)
class Grade:
    """What a grader said."""

    score: float
    timed_out: bool
    """The function did not finish in time, and the score is 0 for that."""


class RewardError(InputError):
    """A reward function failed; the message names the function, the failure and the sample."""


class Grader:
    """A pool of processes that run one reward function. Use it as a context manager.

    The processes start with the block and are reused until its end. Each response is a task of
    its own (handing one over takes about 0.2 ms), so that only the one that hangs is lost; its
    process is killed, wherever it hangs, and replaced. On Linux the processes end with the thread
    that entered the block.

    Args:
        function_name: See `get_reward`.
        workers: Number of processes.
        timeout_s: Seconds that grading one response may take.

    Raises:
        InputError: The function cannot be used.
        ValueError: A number is out of range.
    """

    def __init__(self, function_name: str, *, workers: int, timeout_s: float) -> None:
        if workers < 1:
            raise ValueError(f"reward.workers = {workers}: give at least 1")
        if not timeout_s > 0:
            raise ValueError(f"reward.timeout_s = {timeout_s}: give seconds above 0")
        get_reward(function_name)
        self._function_name = function_name
        self._timeout_s = timeout_s
        self._pool = ProcessPool(
            max_workers=workers,
            initializer=_start_worker,
            initargs=(absolute_name(function_name),),
            # Not forked: the trainer has threads, and may hold a CUDA context.
            context=multiprocessing.get_context("spawn"),
        )

    def __enter__(self) -> Grader:
        # The first task starts the processes, while the caller goes on.
        self._pool.schedule(_do_nothing)
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.stop()
        self._pool.join()

    def grade(self, tasks: Sequence[GradingTask]) -> list[Grade]:
        """Grades responses.

        Args:
            tasks: Any number.

        Returns:
            Their grades, in order. A function that does not finish in time scores 0. So does one
            that ends its process with exit status 0, which looks the same from outside.

        Raises:
            RewardError: A function raised, returned something else than a finite number, or
                crashed its process. The first such response, in order, is named.
        """
        futures = []
        try:
            for task in tasks:
                futures.append(self._pool.schedule(_grade, args=(task,), timeout=self._timeout_s))
            grades: list[Grade] = []
            for task, future in zip(tasks, futures, strict=True):
                grades.append(self._result(task, future))
                progress(len(grades), len(tasks))
            return grades
        except (BrokenProcessPool, RuntimeError) as error:
            raise RewardError(
                f"reward.function = {self._function_name!r}: its processes ended and cannot be "
                f"replaced ({error}); what they printed before says why"
            ) from error
        finally:
            for future in futures:
                future.cancel()  # After an error; what is done cannot be cancelled.

    def _result(self, task: GradingTask, future: Any) -> Grade:
        try:
            outcome = self._outcome(task, future)
        except TimeoutError:
            return Grade(score=0.0, timed_out=True)
        except ProcessExpired as error:
            problem = f"crashed its process (exit status {error.exitcode})"
            raise RewardError(_describe(self._function_name, problem, task)) from None
        if isinstance(outcome, _Failure):
            text = _describe(self._function_name, outcome.problem, task)
            raise RewardError(f"{text}\n{outcome.traceback}".rstrip())
        return Grade(score=outcome, timed_out=False)

    def _outcome(self, task: GradingTask, future: Any) -> Any:
        """What a task returned; a second time where a launcher that ends the job took its process,
        which the run does without to end in order."""
        try:
            return future.result()
        except ProcessExpired as error:
            if -error.exitcode not in (signal.SIGTERM, signal.SIGUSR1):
                raise
        return self._pool.schedule(_grade, args=(task,), timeout=self._timeout_s).result()


def _describe(function_name: str, problem: str, task: GradingTask) -> str:
    lines = [
        f"reward.function = {function_name!r} {problem}",
        f"  sample: {task.sample} of {task.data_source}",
        f"  prompt: {_shortened(repr(task.prompt))}",
        f"  response: {_shortened(repr(task.response))}",
        f"  ground truth: {_shortened(repr(task.ground_truth))}",
    ]
    return "\n".join(lines)


def _shortened(text: str, limit: int = SHOWN_CHARACTERS) -> str:
    if len(text) <= limit:
        return text
    half = limit // 2
    return f"{text[:half]} ... [{len(text) - 2 * half} characters] ... {text[-half:]}"


# What follows runs in the grader processes.


@dataclass(frozen=True)
class _Failure:
    """Why there is no score. Text only: not every exception survives pickling."""

    problem: str
    traceback: str


_reward: RewardFunction


def _start_worker(function_name: str) -> None:
    """Loads the function, so that no response's time pays for it."""
    global _reward
    # Signals that end a job are for the trainer, which still needs its graders to end in order.
    os.setsid()
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    # A Python handler, such as the pool's, would wait for the end of a hanging C function.
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    if sys.platform == "linux":
        # Idle processes notice when a killed trainer is gone; one that hangs needs the kernel.
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    _reward = get_reward(function_name)


def _do_nothing() -> None:
    pass


def _grade(task: GradingTask) -> float | _Failure:
    try:
        score = _reward(
            task.response,
            task.ground_truth,
            prompt=task.prompt,
            data_source=task.data_source,
            extra=task.extra,
        )
    except BaseException as error:  # SystemExit too: nothing a function does may pass for a score.
        cause = "".join(traceback.format_exception_only(error)).strip()
        theirs = error.__traceback__ and error.__traceback__.tb_next
        lines = traceback.format_exception(type(error), error, theirs)
        return _Failure(
            f"raised {_shortened(cause)}", _shortened("".join(lines), 10 * SHOWN_CHARACTERS)
        )
    number = _finite(score)
    if number is None:
        problem = (
            f"returned {_shortened(repr(score))} ({type(score).__name__}), not a finite number"
        )
        return _Failure(problem, "")
    return number


def _finite(score: Any) -> float | None:
    if not isinstance(score, SupportsFloat):
        return None
    try:
        number = float(score)
    except (TypeError, ValueError, OverflowError):  # An array; an integer of 400 digits.
        return None
    return number if math.isfinite(number) else None
