"""The errors that explain themselves to a user."""

from __future__ import annotations

import difflib
import signal
from collections.abc import Collection
from typing import Any

UNUSABLE = 2
"""Exit status of a run that could not start or that ended with an error that explains itself."""


class InputError(ValueError):
    """Something the user gave cannot be used; the message explains it without a traceback.

    It names the setting or file, the value found and what would be right.
    """

    common: bool = False
    """Raised identically on all ranks; only one rank per host prints it."""


class SettingError(InputError):
    """A setting that cannot be used, told by what reads it.

    Args:
        setting: Dotted name.
        value: What was found.
        problem: Why it cannot be used.
        fix: What would be right.
    """

    def __init__(self, setting: str, value: Any, problem: str, fix: str) -> None:
        self.setting, self.value, self.problem, self.fix = setting, value, problem, fix
        super().__init__(f"{setting} = {value!r}: {problem}; {fix}")

    def __reduce__(self) -> tuple[type[SettingError], tuple[Any, ...]]:
        return SettingError, (self.setting, self.value, self.problem, self.fix)


class RunError(RuntimeError):
    """A run has to end; the message explains it without a traceback."""

    status: int = UNUSABLE
    """The process's exit status."""
    common: bool = False
    """Raised identically on all ranks; only one rank per host prints it."""
    lost_hosts: tuple[str, ...] = ()
    """Hosts none of whose ranks gave a sign of life, where that ended the run."""


class RunFileError(RunError):
    """A file of the run could not be written or read."""


def exit_status(error: BaseException) -> int:
    """The status with which a process ends because of an error."""
    if isinstance(error, RunError):
        return error.status
    if isinstance(error, KeyboardInterrupt):
        return 128 + signal.SIGINT
    if isinstance(error, SystemExit) and (error.code is None or isinstance(error.code, int)):
        return error.code or 0
    return UNUSABLE if isinstance(error, InputError) else 1


def closest(name: str, candidates: Collection[str], cutoff: float = 0.6) -> str | None:
    """The candidate that looks most like `name`, or None if none is similar enough."""
    found = difflib.get_close_matches(name, candidates, n=1, cutoff=cutoff)
    return found[0] if found else None
