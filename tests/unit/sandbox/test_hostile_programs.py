"""Hostile programs in a real sandbox: none gets out or a reward, and the next one is not hurt."""

from __future__ import annotations

import os
import socket
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hostile_programs import CHEATS, HOSTILE
from sandboxes import BACKENDS, processes, require_backend

from megatron_resrl.rewards import code
from megatron_resrl.sandbox.backends import ISOLATIONS, Local
from megatron_resrl.sandbox.local import LocalRunner
from megatron_resrl.sandbox.sandbox import Ran, Sandbox

MARK = f"mark{uuid.uuid4().hex}"
ANSWER = "246914"
TESTS = {"inputs": ["123457\n", "4\n"], "outputs": [f"{ANSWER}\n", "8\n"]}
GOOD = "print(2 * int(input()))"
CALLS = {"fn_name": "double", "inputs": [[123457], [4], [0]], "outputs": [246914, 8, 0]}
ASSERTS = {
    "asserts": [
        "assert double(123457) == 246914",
        "assert len([double(4), 0]) == 2 and abs(double(4) - 8) < 1e-9",
        "assert sorted([double(3), double(1)]) == [2, 6] and isinstance(double(1), int)",
    ]
}
LIMIT_S = 0.4
UNDER_LANDLOCK = (
    *("fork by libc", "threads without end", "signals to the grader", "environment of others"),
    *("mode of files", "overwriting", "raw socket by libc", "disk", "exit at once"),
)
"""What is tried there by default; `slow` has all."""


class Watched(LocalRunner):
    """Keeps what programs printed."""

    ran: Ran

    def run(self, program: str, given: str) -> Ran:
        self.ran = super().run(program, given)
        return self.ran


@dataclass
class Place:
    """A sandbox, and things outside of it that no program should reach."""

    runner: Watched
    patient: LocalRunner
    """In the same sandbox; the machine may be slow."""
    secret: Path
    listener: socket.socket

    def grade(
        self, program: str, tests: Any, monkeypatch: pytest.MonkeyPatch, *, patient: bool = False
    ) -> float:
        runner = self.patient if patient else self.runner
        monkeypatch.setattr(code, "_runner", lambda settings: runner)
        return code.code_reward(f"```python\n{program}\n```", tests)

    def reached(self) -> bool:
        """Whether anybody has connected."""
        try:
            self.listener.accept()
        except BlockingIOError:
            return False
        return True


@pytest.fixture(scope="module", params=BACKENDS)
def place(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator:
    backend: Local = request.param
    require_backend(backend)
    secret = tmp_path_factory.mktemp("checkpoints") / "weights"
    secret.write_text("secret")
    secret.chmod(0o666)
    os.environ["SECRET_OF_TEST"] = MARK
    with (
        Sandbox(ISOLATIONS[backend], memory_mb=256) as sandbox,
        socket.create_server(("127.0.0.1", 0)) as listener,
    ):
        listener.setblocking(False)
        yield Place(Watched(sandbox, LIMIT_S), LocalRunner(sandbox, 20.0), secret, listener)
    del os.environ["SECRET_OF_TEST"]


def cases() -> Iterator:
    for backend in BACKENDS:
        for kind in HOSTILE:
            quick = backend == "bubblewrap" or kind in UNDER_LANDLOCK
            marks = () if quick else (pytest.mark.slow,)
            yield pytest.param(backend, kind, marks=marks, id=f"{backend}-{kind}")


@pytest.mark.parametrize(("place", "kind"), list(cases()), indirect=["place"])
def test_hostile_program_gets_nothing(
    place: Place, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = HOSTILE[kind].format(
        secret=str(place.secret),
        home=str(Path.home()),
        mark=MARK,
        port=place.listener.getsockname()[1],
        answer_first=ANSWER[:3],
        answer_rest=ANSWER[3:],
    )
    before = place.secret.stat()
    assert place.grade(program, TESTS, monkeypatch) == 0
    assert MARK.encode() not in place.runner.ran.output
    assert ANSWER.encode() not in place.runner.ran.output
    # Nothing has been reached or changed, and nothing is left.
    assert place.secret.read_text() == "secret"
    after = place.secret.stat()
    assert (after.st_mode, after.st_mtime) == (before.st_mode, before.st_mtime)
    assert not place.reached()
    assert not list(Path("/tmp").glob(f"{MARK}*"))
    assert not [each for _, each in processes() if MARK in each]
    assert place.grade(GOOD, TESTS, monkeypatch, patient=True) == 1


@pytest.mark.parametrize("tests", [CALLS, ASSERTS], ids=["calls", "asserts"])
@pytest.mark.parametrize("kind", CHEATS)
@pytest.mark.parametrize("place", ["bubblewrap"], indirect=True)
def test_cheating_function_gets_nothing(
    place: Place, kind: str, tests: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert place.grade(CHEATS[kind], tests, monkeypatch) == 0
    good = "def double(x): return 2 * x"
    assert place.grade(good, tests, monkeypatch, patient=True) == 1
