"""What runs in the grader processes: one reward function, within bounds of memory and output."""

from __future__ import annotations

import io
import math
import os
import resource
import signal
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, SupportsFloat

from megatron_resrl.config.schema_questions import CodeConfig
from megatron_resrl.platform.ending import end_with_parent
from megatron_resrl.rewards.credit import Credit
from megatron_resrl.rewards.registry import TOKENS, Reward, load_reward, user_folder

SHOWN_CHARACTERS = 600
"""Of each part of a sample in an error message."""

ENOUGH_S = 0.1
"""Seconds after which a task begins no further response, so that all get nearly their whole
time-out."""

LARGEST_LOG = 16 * 2**20
"""Bytes of a log, after which what reward functions print is dropped."""


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
    response_tokens: int = 0
    """Tokens that the policy generated; given to functions that have this argument."""


@dataclass(frozen=True)
class Failure:
    """Why there is no score. Text only: not every exception survives pickling."""

    problem: str
    traceback: str


class OutOfMemory:
    """Instead of a score: the function asked for more than `reward.memory_gb`."""


_reward: Reward
_log: int | None = None


def start_worker(
    function_name: str,
    options: dict[str, Any],
    memory_gb: float | None,
    log: str | None,
    code: CodeConfig | None = None,
) -> None:
    """Loads the function, so that no response's time pays for it.

    Args:
        function_name: Absolute, see `registry.absolute_name`.
        options: Further keyword arguments of the function.
        memory_gb: GiB that grading may take beyond what the loaded process holds; None: any.
        log: File that takes what is printed; None: nothing is redirected.
        code: How the function `code` runs programs.
    """
    global _reward
    # Signals that end a job are for the trainer, which still needs its graders to end in order.
    os.setsid()
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    # A Python handler, such as the pool's, would wait for the end of a hanging C function.
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    # Idle processes notice when a killed trainer is gone; one that hangs needs the kernel.
    end_with_parent()
    if log is not None:
        _redirect(log)
    if folder := user_folder(function_name):
        sys.path.insert(0, str(folder))  # For what the function imports when it is called.
    _reward = load_reward(function_name, options, code)
    if _reward.prepare is not None:
        _reward.prepare()
    if memory_gb is not None and sys.platform == "linux":
        _limit_memory(memory_gb)


def do_nothing() -> None:
    """Starts the processes."""


Outcome = float | Credit | Failure | OutOfMemory
"""Of one response."""


def grade_some(
    tasks: Sequence[GradingTask], clock: Callable[[], float] = time.perf_counter
) -> tuple[list[Outcome], float]:
    """Grades the first of some responses, at least one, and begins none after `ENOUGH_S`.

    Args:
        tasks: One or more.
        clock: Tells seconds.

    Returns:
        The outcomes of the responses that were graded, and the seconds that they took.
    """
    start, outcomes = clock(), list[Outcome]()
    for task in tasks:
        outcomes.append(grade(_reward, task))
        if clock() - start > ENOUGH_S:
            break
    return outcomes, clock() - start


def grade(reward: Reward, task: GradingTask) -> Outcome:
    """Runs a reward function."""
    tokens = {TOKENS: task.response_tokens} if reward.takes_tokens else {}
    try:
        returned = reward.function(
            task.response,
            task.ground_truth,
            prompt=task.prompt,
            data_source=task.data_source,
            extra=task.extra,
            **tokens,
        )
    except MemoryError:
        return OutOfMemory()
    except BaseException as error:  # SystemExit too: nothing a function does may pass for a score.
        cause = "".join(traceback.format_exception_only(error)).strip()
        theirs = error.__traceback__ and error.__traceback__.tb_next
        lines = traceback.format_exception(type(error), error, theirs)
        return Failure(
            f"raised {shortened(cause)}", shortened("".join(lines), 10 * SHOWN_CHARACTERS)
        )
    finally:
        _bound_log()
    if isinstance(returned, Credit):
        return returned
    number = _finite(_score_in(returned))
    if number is None:
        kind = type(returned).__name__
        return Failure(f"returned {shortened(repr(returned))} ({kind}), not a finite number", "")
    return number


def check_values(values: Sequence[Any]) -> list[str | None]:
    """What is wrong with each ground truth; None: nothing."""
    return [_wrong_with(value) for value in values]


def shortened(text: str, limit: int = SHOWN_CHARACTERS) -> str:
    """The beginning and the end of a long text."""
    if len(text) <= limit:
        return text
    half = limit // 2
    return f"{text[:half]} ... [{len(text) - 2 * half} characters] ... {text[-half:]}"


def _wrong_with(value: Any) -> str | None:
    try:
        if _reward.check is not None:
            _reward.check(value)
    except ValueError as error:
        return str(error) or "it is refused without a reason"
    except Exception as error:  # A user's check may raise anything.
        return f"check_ground_truth raised {type(error).__name__}: {error}"
    finally:
        _bound_log()
    return None


def _score_in(returned: Any) -> Any:
    """The score of what compute_score functions return beside a number.

    A dictionary's `score`, a tuple's first item; the rest is dropped.
    """
    if isinstance(returned, dict):
        return returned.get("score")
    if isinstance(returned, tuple) and returned:
        return returned[0]
    return returned


def _finite(score: Any) -> float | None:
    if not isinstance(score, SupportsFloat):
        return None
    try:
        number = float(score)
    except (TypeError, ValueError, OverflowError):  # An array; an integer of 400 digits.
        return None
    return number if math.isfinite(number) else None


def _limit_memory(memory_gb: float) -> None:
    """Limits private memory, not addresses: libraries reserve many gigabytes of those."""
    status = Path("/proc/self/status").read_text()
    used_kb = next(
        int(line.split()[1]) for line in status.splitlines() if line.startswith("VmData")
    )
    _, most = resource.getrlimit(resource.RLIMIT_DATA)
    limit = used_kb * 1024 + int(memory_gb * 2**30)
    if most != resource.RLIM_INFINITY:
        limit = min(limit, most)
    resource.setrlimit(resource.RLIMIT_DATA, (limit, most))


def _redirect(log: str) -> None:
    """Sends stdout and stderr, C code's too, to the end of a file."""
    global _log
    _log = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
        os.dup2(_log, stream.fileno())
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(line_buffering=True)
    _bound_log()


def _bound_log() -> None:
    """Drops what is printed from here on once the log is full."""
    global _log
    if _log is None or os.fstat(_log).st_size < LARGEST_LOG:
        return
    os.ftruncate(_log, LARGEST_LOG)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for descriptor in (sys.stdout.fileno(), sys.stderr.fileno()):
        os.dup2(nowhere, descriptor)
    os.close(_log)
    _log = None
