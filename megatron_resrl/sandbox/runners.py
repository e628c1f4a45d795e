"""What a reward asks of whatever runs programs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from megatron_resrl.sandbox.sandbox import Ran


class Unusable(Exception):
    """Tests that cannot be run, whatever the program is; says why."""


@dataclass(frozen=True)
class Missing:
    """Instead of a result; equal to none."""

    why: str


@dataclass(frozen=True)
class Exam:
    """Tests written as Python."""

    tests: tuple[str, ...]
    """Run in order; one that raises is failed."""
    setup: str = ""
    """Run before them."""
    names: tuple[str, ...] = ()
    """That they use of the program."""


class Runner(Protocol):
    """Runs programs; nothing that one of them does reaches the next, or this process."""

    def run(self, program: str, given: str) -> Ran:
        """Runs a program that reads `given` from its standard input."""

    def call(
        self, program: str, function: str, calls: Sequence[Sequence[Any]]
    ) -> Iterator[Any | Missing]:
        """The results of a function of the program for several lists of arguments, one after
        another; the next call is made when the next result is asked for."""

    def examine(self, program: str, exam: Exam, *, every: bool) -> list[bool]:
        """Which tests a program passes.

        Args:
            program: Defines what the tests call.
            exam: The tests.
            every: Goes on after the first that it does not pass.

        Raises:
            Unusable: The tests cannot be run.
        """
