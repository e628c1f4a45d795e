"""Runs programs in a warm sandbox on this machine."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator, Sequence
from typing import Any

from megatron_resrl.sandbox.calls import Calls, NoAnswer
from megatron_resrl.sandbox.runners import Exam, Missing, Unusable
from megatron_resrl.sandbox.sandbox import TRIES, Program, Ran, Sandbox


class LocalRunner:
    """See `runners.Runner`.

    Args:
        sandbox: Used by nobody else at the same time.
        seconds: That a program may take for one test, or for all tests written as Python.
    """

    def __init__(self, sandbox: Sandbox, seconds: float) -> None:
        self._sandbox = sandbox
        self._seconds = seconds

    def run(self, program: str, given: str) -> Ran:
        """See `runners.Runner.run`."""
        return self._sandbox.run("script", _bytes(program), _bytes(given), seconds=self._seconds)

    def call(
        self, program: str, function: str, calls: Sequence[Sequence[Any]]
    ) -> Iterator[Any | Missing]:
        """See `runners.Runner.call`. A program that gives no answer is started again for the next
        call."""
        left = list(calls)
        while left:
            running, channel = self._serving(program, self._seconds * len(left))
            try:
                functions = Calls(channel, self._seconds)
                while left:
                    arguments = left.pop(0)
                    try:
                        yield functions.call(function, arguments)
                    except NoAnswer as error:
                        yield Missing(str(error))
                        break
            finally:
                channel.close()
                running.close()

    def examine(self, program: str, exam: Exam, *, every: bool) -> list[bool]:
        """See `runners.Runner.examine`."""
        job = {"setup": exam.setup, "tests": exam.tests, "names": exam.names, "every": every}
        for _ in range(TRIES):
            found = self._examined(program, json.dumps(job).encode())
            if found.why != "lost":
                break
        lines = [json.loads(line) for line in found.results.split(b"\n")[:-1]]
        for line in lines:
            if "unusable" in line:
                raise Unusable(line["unusable"])
        passed = [bool(line["passed"]) for line in lines][: len(exam.tests)]
        return passed + [False] * (len(exam.tests) - len(passed))

    def _examined(self, program: str, job: bytes) -> Ran:
        """How the examiner of a program ended."""
        tested, channel = self._serving(program, self._seconds)
        try:
            with channel:
                examiner = self._sandbox.begin(
                    "examiner", job, seconds=self._seconds, channel=channel
                )
        except BaseException:
            tested.close()
            raise
        return self._sandbox.finish([examiner, tested], until=examiner)[0]

    def _serving(self, program: str, seconds: float) -> tuple[Program, socket.socket]:
        """A program whose functions can be called, and the channel by which."""
        own, its = socket.socketpair()
        with its:
            try:
                running = self._sandbox.begin(
                    "functions", _bytes(program), seconds=seconds, channel=its
                )
            except BaseException:
                own.close()
                raise
        return running, own


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")
