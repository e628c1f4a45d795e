"""A warm sandbox: what one program leaves to the next, and what ends it."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest
from sandboxes import BACKENDS, require_backend

from megatron_resrl.sandbox.backends import ISOLATIONS, Local
from megatron_resrl.sandbox.local import LocalRunner
from megatron_resrl.sandbox.runners import Exam, Missing, Unusable
from megatron_resrl.sandbox.sandbox import Sandbox

ROOT = Path(__file__).resolve().parents[3]
LIMIT_S = 20.0
"""The machine may be slow; no program below needs it."""


@pytest.fixture(scope="module", params=BACKENDS)
def sandbox(request: pytest.FixtureRequest) -> Iterator[Sandbox]:
    backend: Local = request.param
    require_backend(backend)
    with Sandbox(ISOLATIONS[backend], memory_mb=256) as sandbox:
        yield sandbox


@pytest.fixture
def runner(sandbox: Sandbox) -> LocalRunner:
    return LocalRunner(sandbox, LIMIT_S)


def test_sandbox_runs_a_program_with_its_input(runner: LocalRunner) -> None:
    ran = runner.run("import sys\nprint(sys.stdin.read()[::-1], __name__)\nexit(3)", "né\n" * 50000)
    assert (ran.code, ran.why) == (3, "")
    assert ran.output.decode() == ("né\n" * 50000)[::-1] + " __main__\n"


def test_sandbox_tells_how_a_program_ended(runner: LocalRunner) -> None:
    ran = runner.run("1 / 0", "")
    assert (ran.code, ran.output) == (1, b"")
    assert b"ZeroDivisionError" in ran.errors
    assert b"zygote" not in ran.errors
    assert runner.run("def", "").code == 1
    assert runner.run("exit('sorry')", "").errors == b"sorry\n"
    assert runner.run("import os\nos.abort()", "").code == -signal.SIGABRT


def test_sandbox_runs_what_programs_use(runner: LocalRunner) -> None:
    source = """
import array, asyncio, bz2, csv, dataclasses, decimal, hashlib, json, pickle, sqlite3, zlib
@dataclasses.dataclass
class Point:
    x: int
assert pickle.loads(pickle.dumps(Point(1))) == Point(1)
async def later(): await asyncio.sleep(0); return "ran"
print(asyncio.run(later()), hashlib.sha256(b"").hexdigest()[:4])
"""
    ran = runner.run(source, "")
    assert ran.output == b"ran e3b0\n", ran.errors


@pytest.mark.parametrize("backend", BACKENDS)
def test_sandbox_runs_compiled_packages(backend: Local) -> None:
    require_backend(backend)
    packages = str(Path(np.__file__).parents[1])
    with Sandbox(ISOLATIONS[backend], memory_mb=512, packages=packages) as sandbox:
        ran = sandbox.run("script", b"import numpy\nprint(numpy.eye(2) @ [1, 2])", seconds=LIMIT_S)
    assert ran.output == b"[1. 2.]\n", ran.errors


def test_sandbox_starts_every_program_alike(runner: LocalRunner) -> None:
    traces = """
import builtins, os, sys
print(hash("text"), sorted(os.environ), getattr(builtins, "left", None))
print(len(sys.modules), os.getcwd(), sys.argv, os.path.exists("/tmp/left"))
builtins.left, os.environ["LEFT"] = 1, "1"
try:
    open("/tmp/left", "w").close()
except OSError:
    pass
"""
    first, second = runner.run(traces, ""), runner.run(traces, "")
    assert first.output == second.output
    assert first.code == 0


def test_sandbox_calls_functions_of_a_program(runner: LocalRunner) -> None:
    source = """
calls = 0
def add(x, y):
    global calls
    calls += 1
    print("noise " * 20000)
    return x + y, calls
class Solution:
    def __init__(self): self.used = False
    def once(self, x):
        assert not self.used
        self.used = True
        return x
"""
    assert list(runner.call(source, "add", [[1, 2], ["a", "b"]])) == [(3, 1), ("ab", 2)]
    assert list(runner.call(source, "once", [[1], [2]])) == [1, 2]
    assert list(runner.call(source, "Solution.once", [[1], [2]])) == [1, 2]
    absent, wrong = list(runner.call(source, "absent", [[]])), list(runner.call("1/0", "f", [[]]))
    assert all(isinstance(each, Missing) for each in [*absent, *wrong])


def test_sandbox_starts_a_program_again_that_ends(runner: LocalRunner) -> None:
    source = "import os\ndef f(x): return os._exit(0) if x == 2 else x"
    first, second, third = runner.call(source, "f", [[1], [2], [3]])
    assert (first, third) == (1, 3)
    assert isinstance(second, Missing)


def test_sandbox_examines_a_program_from_outside(runner: LocalRunner) -> None:
    source = """
class Stack:
    def __init__(self): self.items = []
    def push(self, item): self.items.append(item); return self
    def size(self): return len(self.items)
def root(x):
    if x < 0: raise ValueError("negative")
    return x ** 0.5
def same(x): return x
def kept(): return Stack()
"""
    tests = (
        "assert math.isclose(root(2), 1.41421356, rel_tol=1e-6)",
        "stack = Stack()\nstack.push(1).push(2)\n"
        "assert stack.size() == 2 and stack.items == [1, 2]\n"
        "stack.top, stack.below = 2, Stack()\n"
        "assert stack.top == 2 and stack.below.size() == 0",
        "try:\n    root(-1)\nexcept ValueError as error:\n    assert 'negative' in str(error)\n"
        "else:\n    raise AssertionError",
        "assert root(4) == 3",
        "assert same((1, {2: [3]})) == (1, {2: [3]}) and same(x=1) == 1",
        "assert kept()",
        "assert kept() == kept()",
        "assert len(same([1, 2])) == 2 and check(same)",
    )
    setup = "def check(candidate):\n    return all(candidate(each) == each for each in range(9))"
    exam = Exam(tests, setup, ("root", "Stack", "same", "kept"))
    right = [True, True, True, False, True, False, False, True]
    assert runner.examine(source, exam, every=True) == right
    assert runner.examine(source, exam, every=False) == [True] * 3 + [False] * 5


def test_sandbox_fails_tests_that_catch_the_end_of_a_program(runner: LocalRunner) -> None:
    exam = Exam(("try:\n    f(1)\nexcept:\n    pass", "assert True"), "", ("f",))
    for ends in ("import os\ndef f(x): os._exit(0)", "import os\ndef f(x): os.write(4, b'[\\n')"):
        assert runner.examine(ends, exam, every=True) == [False, False]
    assert runner.examine("def f(x): 1 / 0", exam, every=True) == [True, True]


@pytest.mark.parametrize("setup", ["import absent", "assert False", "1 / 0", "undefined"])
def test_sandbox_says_that_tests_cannot_be_run(runner: LocalRunner, setup: str) -> None:
    exam = Exam(("assert f(1) == 1",), setup, ("f",))
    with pytest.raises(Unusable):
        runner.examine("def f(x): return x", exam, every=False)


def test_sandbox_starts_again_after_its_end(sandbox: Sandbox, runner: LocalRunner) -> None:
    assert runner.run("print(1)", "").output == b"1\n"
    started = sandbox._started
    assert started is not None
    family = [started.process.pid, *(each.pid for each in _family(started.process.pid))]
    os.kill(started.process.pid, signal.SIGKILL)
    started.process.wait()
    assert runner.run("print(2)", "").output == b"2\n"
    assert not [each for each in family if _lives(each)]


def _family(pid: int) -> list[psutil.Process]:
    return psutil.Process(pid).children(recursive=True)


def _lives(pid: int) -> bool:
    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


@pytest.mark.parametrize("backend", BACKENDS)
def test_sandbox_ends_with_the_process_that_started_it(backend: Local) -> None:
    require_backend(backend)
    source = (
        "import os, sys\n"
        "from megatron_resrl.sandbox.sandbox import Sandbox\n"
        f"sandbox = Sandbox({ISOLATIONS[backend]!r}, memory_mb=256)\n"
        "sandbox.run('script', b'1', seconds=20)\n"
        "sandbox.begin('script', b'while True: pass', seconds=60)\n"
        "print('ready', flush=True)\n"
        "sys.stdin.read()\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", source],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"
    deadline = time.monotonic() + 20
    while len(family := _family(process.pid)) < 3 and time.monotonic() < deadline:
        time.sleep(0.01)  # First process, guard and program; before them bubblewrap's.
    assert len(family) >= 3
    process.kill()
    process.communicate()
    _, alive = psutil.wait_procs(family, timeout=20)
    assert not [each for each in alive if _lives(each.pid)]


@pytest.fixture
def code_for_all() -> Iterator[Path]:
    """A copy of the sandbox's code that every user may read."""
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        package = Path(folder, "megatron_resrl")
        shutil.copytree(ROOT / "megatron_resrl/sandbox", package / "sandbox")
        shutil.copy(ROOT / "megatron_resrl/errors.py", package)
        Path(folder).chmod(0o755)
        yield Path(folder)


@pytest.mark.parametrize("backend", BACKENDS)
def test_sandbox_works_for_a_user_without_rights(code_for_all: Path, backend: Local) -> None:
    require_backend(backend)
    python, setpriv = "/usr/bin/python3", shutil.which("setpriv")
    if os.geteuid() != 0 or setpriv is None or not os.path.exists(python):
        pytest.skip("needs root, setpriv, and a Python that every user can run")
    tried = (
        "import os, socket\n"
        "print(os.getuid())\n"
        "for attempt in (os.fork, socket.socket, lambda: os.listdir('/etc/ssl')):\n"
        "    try: attempt()\n"
        "    except OSError: print('refused')\n"
    )
    program = (
        "import os\n"
        "from megatron_resrl.sandbox.sandbox import Sandbox\n"
        f"with Sandbox({ISOLATIONS[backend]!r}, memory_mb=256) as sandbox:\n"
        f"    ran = sandbox.run('script', {tried.encode()!r}, seconds=20)\n"
        "    print(os.getuid(), ran.output.decode(), ran.errors.decode(), ran.why)\n"
    )
    nobody = [setpriv, "--reuid", "65534", "--regid", "65534", "--clear-groups"]
    found = subprocess.run(
        [*nobody, python, "-c", program],
        cwd="/",
        env={"PYTHONPATH": str(code_for_all), "PATH": os.environ["PATH"]},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert found.stdout.split() == ["65534", "65534", *["refused"] * 3], found.stderr


def test_sandbox_ends_programs_that_nobody_waits_for(sandbox: Sandbox) -> None:
    sandbox.run("script", b"1", seconds=LIMIT_S)
    started = sandbox._started
    assert started is not None
    deadline = time.monotonic() + LIMIT_S

    def until(count: Callable[[int], bool]) -> int:
        while not count(found := len(_family(started.process.pid))) and time.monotonic() < deadline:
            time.sleep(0.01)
        return found

    # Bubblewrap's, the first process, and the guard of the next program.
    idle = 3 if sandbox._isolation == "namespaces" else 1
    assert until(lambda found: found == idle) == idle
    program = sandbox.begin("script", b"while True: pass", seconds=60)
    assert until(lambda found: found == idle + 2) == idle + 2
    program.close()
    assert until(lambda found: found == idle) == idle
