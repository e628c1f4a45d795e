"""Probes that may hang or crash run in processes and threads of their own, for a limited time."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import tempfile
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

Result = TypeVar("Result")

_KILLED_WITHIN_S = 5.0
"""Seconds that a killed process may take; one that waits for a device or file server takes for
ever, and is left behind."""
_ERROR_CHARACTERS = 300


class NoAnswer(Exception):
    """A probe gave no answer; says why."""


@dataclass
class Answer:
    """What a process has printed."""

    objects: list[dict[str, Any]] = field(default_factory=list)
    """The JSON objects among the lines of its standard output; other lines are of libraries."""
    output: str = ""
    """All of its standard output."""
    failure: str | None = None
    """Why the process did not end well; None: it did."""


def ask(
    command: Sequence[str],
    limit_s: float,
    *,
    environment: Mapping[str, str] | None = None,
    directory: str | None = None,
) -> Answer:
    """Runs a process and returns what it printed, also where it did not come to its end.

    Args:
        command: Program and arguments.
        limit_s: Seconds after which the process and its children are killed.
        environment: Of the process; None: this one's.
        directory: To run in; None: this one's.
    """
    # Files instead of pipes: what a process printed stays readable even if it cannot be killed.
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        try:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                env=None if environment is None else dict(environment),
                cwd=directory,
                start_new_session=True,
            )
        except OSError as error:
            return Answer(failure=f"{command[0]} cannot be run ({error.strerror or error})")
        try:
            failure = _ended(process, limit_s)
        finally:
            _kill(process)
        texts = []
        for file in (out, err):
            file.seek(0)
            texts.append(file.read().decode("utf-8", "replace"))
    if failure is not None and (said := " ".join(texts[1].split())):
        failure += f"; it said: {said[-_ERROR_CHARACTERS:]}"
    return Answer(list(_objects(texts[0])), texts[0], failure)


def within(limit_s: float, action: Callable[[], Result]) -> Result:
    """The result of a function that may hang.

    A process whose thread hangs in the kernel cannot end: what may do so belongs into `ask`.

    Raises:
        NoAnswer: It did not return in time; its thread is left behind.
        Exception: The function raised it.
    """
    outcome: list[tuple[Result | None, BaseException | None]] = []

    def run() -> None:
        try:
            outcome.append((action(), None))
        except BaseException as error:
            outcome.append((None, error))

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(limit_s)
    if not outcome:
        raise NoAnswer(f"no answer within {limit_s:.3g} s")
    result, error = outcome[0]
    if error is not None:
        raise error
    return result  # type: ignore[return-value]  # The function's own result.


def _ended(process: subprocess.Popen[bytes], limit_s: float) -> str | None:
    """Waits for the end. Returns why it was no good one."""
    try:
        status = process.wait(limit_s)
    except subprocess.TimeoutExpired:
        return f"no answer within {limit_s:.3g} s"
    if status < 0:
        return f"ended by {signal.Signals(-status).name}"
    return f"ended with status {status}" if status else None


def _kill(process: subprocess.Popen[bytes]) -> None:
    """Ends the process's group: its children, too."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(_KILLED_WITHIN_S)


def _objects(text: str) -> list[dict[str, Any]]:
    found = []
    for line in text.splitlines():
        with contextlib.suppress(ValueError):
            value = json.loads(line)
            if isinstance(value, dict):
                found.append(value)
    return found
