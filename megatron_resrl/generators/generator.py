"""Rows of questions that a program makes, the same ones wherever and whenever they are made."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from megatron_resrl.errors import InputError, closest
from megatron_resrl.generators.exact_json import from_json, to_json
from megatron_resrl.generators.reasoning_gym_tasks import (
    LibraryMissing,
    TaskError,
    make_task,
    require_library,
)

LIBRARY = "reasoning_gym"
"""What a generator's address begins with, before a colon."""
_EXAMPLE = f"{LIBRARY}:leg_counting"
_PROGRAM = "megatron_resrl.generators.make_rows"

PROMPT_KEY, ANSWER_KEY = "question", "answer"
"""Columns of a row."""
METADATA_KEY, OPTIONS_KEY = "metadata", "task_options"
"""Columns for the verifier, both texts of `exact_json`: what the task says of the question, and
the options that the task was made with."""


@dataclass(frozen=True)
class Generator:
    """What makes questions, and which."""

    address: str
    """reasoning_gym:TASK."""
    options: str
    """Fields of the task's configuration, as JSON."""
    size: int
    """Questions."""
    seed: int
    """Question i is keyed by `seed` + i."""

    @property
    def task(self) -> str:
        """Its name in the library."""
        return self.address.partition(":")[2]

    def shares_questions(self, other: Generator) -> bool:
        """Whether both make the same question somewhere, beyond what chance brings."""
        if (self.address, self.options) != (other.address, other.options):
            return False
        return self.seed < other.seed + other.size and other.seed < self.seed + self.size

    @property
    def has_library(self) -> bool:
        """Whether its library can be imported."""
        try:
            require_library()
        except LibraryMissing:
            return False
        return True

    def check(self) -> None:
        """Makes the task, but no question.

        Raises:
            TaskError: The address or the options are wrong.
            LibraryMissing: The library is not installed.
        """
        require_address(self.address)
        make_task(self.task, from_json(self.options), seed=self.seed, size=self.size)

    def rows(self, limit: int | None = None) -> Iterator[tuple[str, dict[str, Any]]]:
        """Yields rows, each with what to call it; see `make_rows`.

        A process of its own makes them: some tasks draw from the interpreter's random numbers or
        depend on the order of sets, and so on the process's hash seed.

        Args:
            limit: No more than that, the first ones; None: all.

        Raises:
            InputError: The library raised; the message has its words.
        """
        count = self.count(limit)
        path = os.pathsep.join(filter(None, sys.path))
        done = subprocess.run(
            [sys.executable, "-m", _PROGRAM],
            input=json.dumps({**vars(self), "count": count}),
            env=os.environ | {"PYTHONHASHSEED": "0", "PYTHONPATH": path},
            capture_output=True,
            text=True,
            encoding="utf-8",
            check=False,
        )
        if done.returncode:
            last = (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]
            raise InputError(f"{self.address}: it makes no questions, {last}; change its options")
        for number, line in enumerate(done.stdout.splitlines()):
            yield f"{self.address}, row {number}", json.loads(line)

    def count(self, limit: int | None = None) -> int:
        """Number of rows with a limit; None: there is none."""
        return self.size if limit is None else min(self.size, limit)


def new_generator(address: str, options: Mapping[str, Any], size: int, seed: int) -> Generator:
    """The generator of these settings, which need not be right.

    Raises:
        TypeError: An option has no JSON.
    """
    return Generator(address, to_json(dict(options)), size, seed)


def require_address(address: str) -> None:
    """Refuses what names no task of a library.

    Raises:
        TaskError: With what would be right.
    """
    library, _, task = address.partition(":")
    if library == LIBRARY and task:
        return
    if library == LIBRARY:
        raise TaskError("it names no task", f"give e.g. {_EXAMPLE}")
    near = closest(library, [LIBRARY])
    fix = f"did you mean {near}:{task}?" if near and task else f"give e.g. {_EXAMPLE}"
    raise TaskError(f"there is no generator {library!r}", fix)
