"""Runs programs on a SandboxFusion server, over its public protocol (`POST /run_code`)."""

from __future__ import annotations

import base64
import json
import secrets
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import httpx

from megatron_resrl.sandbox.inside import values
from megatron_resrl.sandbox.inside.values import decoded
from megatron_resrl.sandbox.runners import Exam, Missing, Unusable
from megatron_resrl.sandbox.sandbox import Ran

TRIES = 3
"""Of a request that the server did not answer as it should."""
_SLOWER_S = 30.0
"""Seconds beyond a program's own that a server may keep a request waiting."""

_DRIVER = """
import sys
request = json.load(open("request.json"))
module = type(sys)("solution")
sys.modules["solution"] = module
exec(compile(request["program"], "program.py", "exec"), module.__dict__)
owner, _, name = request["function"].rpartition(".")
if not owner and not hasattr(module, name):
    owner = "Solution"
kept = []
for arguments in request["calls"]:
    try:
        start = getattr(module, owner)() if owner else module
        answer = ("value", getattr(start, name)(*arguments))
        line = encoded(answer, lambda value: kept.append(value) or len(kept))
    except Exception as error:
        line = encoded(("error", type(error).__name__, str(error)[:1000]), id)
    print(request["mark"] + line, flush=True)
"""
"""Calls a function; what is right is not sent."""


class ServerError(Exception):
    """The server does not run programs; says why."""


class RemoteRunner:
    """See `runners.Runner`.

    Args:
        url: Of the server, without `/run_code`.
        seconds: That a program may take for one test.
        memory_mb: MiB that it may take.
    """

    def __init__(self, url: str, seconds: float, memory_mb: int) -> None:
        self._address = f"{url.rstrip('/')}/run_code"
        self._seconds = seconds
        self._memory_mb = memory_mb

    def run(self, program: str, given: str) -> Ran:
        """See `runners.Runner.run`.

        Raises:
            ServerError: The server cannot be used.
        """
        return self._ran(program, given, {}, self._seconds)

    def call(
        self, program: str, function: str, calls: Sequence[Sequence[Any]]
    ) -> Iterator[Any | Missing]:
        """See `runners.Runner.call`; all calls are one request.

        Raises:
            ServerError: The server cannot be used.
        """
        mark = secrets.token_hex(8)  # What the program prints itself is no answer.
        request = {"program": program, "function": function, "calls": calls, "mark": mark}
        code = Path(values.__file__).read_text(encoding="utf-8") + _DRIVER
        files = {"request.json": json.dumps(request)}
        ran = self._ran(code, "", files, self._seconds * len(calls))
        lines = ran.output.decode(errors="replace").splitlines()
        answers = [line.removeprefix(mark) for line in lines if line.startswith(mark)]
        for number in range(len(calls)):
            yield _result(answers[number]) if number < len(answers) else Missing("ended")

    def examine(self, program: str, exam: Exam, *, every: bool) -> list[bool]:
        """Refused: nothing would keep the program from the tests that run beside it.

        Raises:
            Unusable: Always.
        """
        raise Unusable(
            "tests as asserts need a sandbox on this machine (reward.code.backend), because a "
            "remote server would run them in the program's own process"
        )

    def _ran(self, code: str, given: str, files: dict[str, str], seconds: float) -> Ran:
        content = {
            "code": code,
            "language": "python",
            "stdin": given,
            "run_timeout": seconds,
            "memory_limit_MB": self._memory_mb,
            "files": {
                name: base64.b64encode(text.encode()).decode() for name, text in files.items()
            },
        }
        why = ""
        for _ in range(TRIES):
            try:
                answer = httpx.post(self._address, json=content, timeout=seconds + _SLOWER_S)
                answer.raise_for_status()
                return _read(answer.json())
            except httpx.HTTPError as error:
                why = str(error) or type(error).__name__
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                why = str(error) or "an answer of another protocol"
        raise ServerError(f"{self._address} does not run programs, tried {TRIES} times: {why}")


def _result(line: str) -> Any | Missing:
    try:
        answer = decoded(line, _stays_there)
    except ValueError:
        return Missing("nonsense")
    match answer:
        case ("value", value):
            return value
        case ("error", kind, text):
            return Missing(f"{kind}: {text}")
    return Missing("nonsense")


def _stays_there(number: int) -> Missing:
    return Missing(f"object {number} of the program")


def _read(answer: dict[str, Any]) -> Ran:
    """What a server says of a program.

    Raises:
        ValueError: It could not run it.
        KeyError, TypeError, AttributeError: It speaks another protocol.
    """
    if answer["status"] == "SandboxError":
        raise ValueError(f"its sandbox failed: {answer.get('message', '')[:200]}")
    ran = answer["run_result"]
    late = ran["status"] == "TimeLimitExceeded"
    return Ran(
        code=None if late else ran["return_code"],
        output=(ran.get("stdout") or "").encode("utf-8", "surrogatepass"),
        errors=(ran.get("stderr") or "").encode("utf-8", "surrogatepass"),
        why="time" if late else "",
        seconds=ran.get("execution_time") or 0.0,
    )
