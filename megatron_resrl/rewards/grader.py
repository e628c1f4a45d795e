"""Grades responses in processes of their own: a reward function that hangs costs one score."""

from __future__ import annotations

import contextlib
import logging
import multiprocessing
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import TimeoutError
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from pebble import ProcessExpired, ProcessPool

from megatron_resrl.config.schema_questions import CodeConfig
from megatron_resrl.errors import InputError
from megatron_resrl.platform.phases import progress
from megatron_resrl.rewards.credit import Credit
from megatron_resrl.rewards.grader_process import (
    Failure,
    GradingTask,
    Outcome,
    OutOfMemory,
    check_values,
    do_nothing,
    grade,
    grade_some,
    shortened,
    start_worker,
)
from megatron_resrl.rewards.registry import QUICK, FunctionPlaces, absolute_name, load_reward

__all__ = ["Grade", "Grader", "GradingTask", "RewardError", "describe_sample"]

logger = logging.getLogger(__name__)

CHUNK = 64
"""Ground truths that a process reads as one task; most responses of a task."""

TASK_S = 0.02
"""Seconds that a task of several responses is meant to take. Handing one over takes 0.2 ms."""

EARLY = 8
"""Responses that all time out before it is said at once, and not when all are graded."""


@dataclass(frozen=True)
class Grade:
    """What a grader said."""

    score: float
    timed_out: bool
    """The function did not finish in time, and the score is 0 for that."""
    killed: bool = False
    """It asked for more than `reward.memory_gb`, or the system killed its process, as it does when
    memory runs out; the score is 0 for that."""
    unanswered: bool = False
    """A server gave no score, or nonsense in its place; the score is 0 for that."""
    combined: float | None = None
    """The reward where it is another than the score: of several functions the weighted sum of
    theirs, of one a partial credit; None: it is the score."""
    parts: Mapping[str, float] = field(default_factory=dict)
    """Of several functions: the score by each of those that judge the row, by its label."""

    @property
    def reward(self) -> float:
        """What counts before length scaling and penalties."""
        return self.score if self.combined is None else self.combined


class ResponseGrader(Protocol):
    """Judges responses by one function."""

    def grade(self, tasks: Sequence[GradingTask]) -> list[Grade]:
        """The grades of responses, in order; raises `RewardError`."""

    def check_ground_truths(self, values: Sequence[Any]) -> list[str | None]:
        """What is wrong with each ground truth; None: nothing."""


class RewardError(InputError):
    """A reward function failed; the message names the function, the failure and the sample."""


class Grader:
    """A pool of processes that run one reward function. Use it as a context manager.

    The processes start with the block and are reused until its end. A response that hangs costs
    its own score only; its process is killed, wherever it hangs, and replaced. Each response is a
    task of its own until the function has shown that it is quick; then tasks have several, and
    those of a task that is lost are graded again one by one. On Linux the processes end with the
    thread that entered the block, and their memory is limited. A function of ours that takes
    microseconds runs in the caller's process.

    Args:
        function_name: See `load_reward`.
        workers: Number of processes, at least 1.
        timeout_s: Seconds that grading one response may take, above 0.
        memory_gb: GiB that it may take beyond what the process holds with the function loaded;
            None: any.
        log: File that takes what the function prints, at most `grader_process.LARGEST_LOG` bytes;
            None: it goes where the caller's goes.
        options: Further keyword arguments of the function.
        code: How the function `code` runs programs.
        places: See `load_reward`.

    Raises:
        InputError: The function cannot be used.
    """

    def __init__(
        self,
        function_name: str,
        *,
        workers: int,
        timeout_s: float,
        memory_gb: float | None = None,
        log: Path | None = None,
        options: dict[str, Any] | None = None,
        code: CodeConfig | None = None,
        places: FunctionPlaces | None = None,
    ) -> None:
        self._reward = load_reward(function_name, options, code, places)
        self._setting = f"{(places or FunctionPlaces()).name} = {function_name!r}"
        self._quick = function_name in QUICK
        self._together = 1
        self._workers = workers
        if log is not None:
            log.parent.mkdir(parents=True, exist_ok=True)
        self._timeout_s = timeout_s
        self._log = log
        self._pool = ProcessPool(
            max_workers=workers,
            initializer=start_worker,
            initargs=(
                absolute_name(function_name),
                options or {},
                memory_gb,
                log and str(log.absolute()),
                code,
            ),
            # Not forked: the trainer has threads, and may hold a CUDA context.
            context=multiprocessing.get_context("spawn"),
        )

    def __enter__(self) -> Grader:
        # The first task starts the processes, while the caller continues.
        if not self._quick:
            self._pool.schedule(do_nothing)
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
            that ends its process with exit status 0, which looks the same from outside, and one
            whose process runs out of memory or is killed.

        Raises:
            RewardError: A function raised, returned something else than a score, or crashed its
                process. The first such response, in order, is named.
        """
        if self._quick:
            return [self._grade(task, grade(self._reward, task)) for task in tasks]
        grades: list[Grade] = []
        for each in self._graded(tasks):
            grades.append(each)
            progress(len(grades), len(tasks))
            if EARLY == len(grades) < len(tasks) and all(each.timed_out for each in grades):
                logger.warning(
                    "%s: the first %d of %d responses all timed out after %g s (reward.timeout_s)",
                    *(self._setting, EARLY, len(tasks), self._timeout_s),
                )
        return grades

    def _graded(self, tasks: Sequence[GradingTask]) -> Iterator[Grade]:
        """Grades in order, and finds out how many responses the next tasks may have."""
        size = max(1, min(self._together, -(-len(tasks) // self._workers)))
        chunks = [tasks[start : start + size] for start in range(0, len(tasks), size)]
        pace, lost = _Pace(), False
        with self._scheduled(grade_some, chunks) as futures:
            for chunk, future in zip(chunks, futures, strict=True):
                for each in self._grades_of(chunk, future, pace):
                    lost |= each.timed_out or each.killed
                    yield each
        self._together = 1 if lost else pace.together()

    def _grades_of(self, chunk: Sequence[GradingTask], future: Any, pace: _Pace) -> Iterator[Grade]:
        """The grades of a task of one or several responses."""
        if len(chunk) == 1:
            yield self._grade_of(chunk[0], future, pace)
            return
        try:
            outcomes = pace.take(future.result())
        except (TimeoutError, ProcessExpired):
            outcomes = []  # Which response was it? Alone, each shows what it does.
        for task, outcome in zip(chunk, outcomes, strict=False):
            yield self._grade(task, outcome)
        left = chunk[len(outcomes) :]
        with self._scheduled(grade_some, [[task] for task in left]) as singles:
            for task, single in zip(left, singles, strict=True):
                yield self._grade_of(task, single, pace)

    def check_ground_truths(self, values: Sequence[Any]) -> list[str | None]:
        """Asks the function whether it can use ground truths, before there are responses.

        Args:
            values: Any number.

        Returns:
            What is wrong with each, in order; None: nothing, or the function has no check. One
            that takes too long, or kills its process, costs its own value only.

        Raises:
            RewardError: The processes cannot be used.
        """
        if self._reward.check is None:
            return [None] * len(values)
        chunks = [values[start : start + CHUNK] for start in range(0, len(values), CHUNK)]
        found: list[str | None] = []
        with self._scheduled(check_values, chunks) as futures:
            for chunk, future in zip(chunks, futures, strict=True):
                problems, lost = self._checked(future)
                if lost is None:
                    found += problems
                    continue
                with self._scheduled(check_values, [[value] for value in chunk]) as single:
                    for each in single:
                        problems, lost = self._checked(each)
                        found.append(problems[0] if lost is None else lost)
        return found

    def _checked(self, future: Any) -> tuple[list[str | None], str | None]:
        """What was found, or why nothing was."""
        try:
            return future.result(), None
        except TimeoutError:
            return [], f"reading it takes longer than reward.timeout_s = {self._timeout_s:g} s"
        except ProcessExpired as error:
            return [], f"reading it crashes the grader (exit status {error.exitcode})"

    @contextlib.contextmanager
    def _scheduled(
        self, function: Callable[[Any], Any], arguments: Sequence[Any]
    ) -> Iterator[list[Any]]:
        """Futures of a task for each argument; what is left at the end is cancelled."""
        futures: list[Any] = []
        try:
            for argument in arguments:
                future = self._pool.schedule(function, args=(argument,), timeout=self._timeout_s)
                futures.append(future)
            yield futures
        except (BrokenProcessPool, RuntimeError) as error:
            where = "what they printed before" if self._log is None else str(self._log)
            raise RewardError(
                f"{self._setting}: its processes ended and cannot be "
                f"replaced ({error}); {where} says why"
            ) from error
        finally:
            for future in futures:
                future.cancel()  # After an error; what is done cannot be cancelled.

    def _grade_of(self, task: GradingTask, future: Any, pace: _Pace) -> Grade:
        """The grade of a response that is a task of its own."""
        try:
            [outcome] = pace.take(self._result(task, future))
        except TimeoutError:
            return Grade(score=0.0, timed_out=True)
        except ProcessExpired as error:
            if error.exitcode == -signal.SIGKILL:  # As the system does when memory runs out.
                return Grade(score=0.0, timed_out=False, killed=True)
            problem = f"crashed its process (exit status {error.exitcode})"
            raise RewardError(_describe(self._setting, problem, task)) from None
        return self._grade(task, outcome)

    def _grade(self, task: GradingTask, outcome: Outcome) -> Grade:
        if isinstance(outcome, OutOfMemory):
            return Grade(score=0.0, timed_out=False, killed=True)
        if isinstance(outcome, Failure):
            text = _describe(self._setting, outcome.problem, task)
            raise RewardError(f"{text}\n{outcome.traceback}".rstrip())
        if isinstance(outcome, Credit):
            return Grade(score=outcome.score, timed_out=False, combined=outcome.reward)
        return Grade(score=outcome, timed_out=False)

    def _result(self, task: GradingTask, future: Any) -> Any:
        """What a task returned; a second time where a launcher that ends the job took its process,
        which the run does without to end in order."""
        try:
            return future.result()
        except ProcessExpired as error:
            if -error.exitcode not in (signal.SIGTERM, signal.SIGUSR1):
                raise
        return self._pool.schedule(grade_some, args=([task],), timeout=self._timeout_s).result()


@dataclass
class _Pace:
    """How long responses take to grade."""

    seconds: float = 0.0
    responses: int = 0

    def take(self, result: tuple[list[Outcome], float]) -> list[Outcome]:
        """The outcomes of a task, whose time is noted."""
        outcomes, seconds = result
        self.seconds += seconds
        self.responses += len(outcomes)
        return outcomes

    def together(self) -> int:
        """Responses that a task may have."""
        if not self.responses:
            return 1
        return max(1, min(CHUNK, int(TASK_S * self.responses / max(self.seconds, 1e-9))))


def describe_sample(task: GradingTask) -> str:
    """Lines with prompt, response and ground truth, shortened."""
    lines = [
        f"  sample: {task.sample} of {task.data_source}",
        f"  prompt: {shortened(repr(task.prompt))}",
        f"  response: {shortened(repr(task.response))}",
        f"  ground truth: {shortened(repr(task.ground_truth))}",
    ]
    return "\n".join(lines)


def _describe(setting: str, problem: str, task: GradingTask) -> str:
    return f"{setting} {problem}\n{describe_sample(task)}"
