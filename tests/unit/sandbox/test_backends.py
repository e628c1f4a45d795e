"""Which sandbox is chosen, and why there is none."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from sandboxes import BACKENDS, require_backend

from megatron_resrl.config.schema_questions import CodeConfig
from megatron_resrl.errors import SettingError
from megatron_resrl.rewards.code import code_reward
from megatron_resrl.sandbox import backends
from megatron_resrl.sandbox.backends import Local, find_backend, try_backend

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture
def untried() -> Iterator[None]:
    """Backends are tried out in the test, and again after it."""
    try_backend.cache_clear()
    yield
    try_backend.cache_clear()


def test_find_backend_takes_the_best_that_works() -> None:
    require_backend("bubblewrap")
    assert find_backend(CodeConfig()) == "bubblewrap"


@pytest.mark.parametrize("backend", BACKENDS)
def test_try_backend_finds_that_programs_are_held(backend: Local) -> None:
    require_backend(backend)
    assert try_backend(backend).problem is None


@pytest.mark.usefixtures("untried")
def test_find_backend_does_without_bubblewrap(monkeypatch: pytest.MonkeyPatch) -> None:
    require_backend("landlock")
    monkeypatch.setenv("PATH", "/nowhere")
    assert find_backend(CodeConfig()) == "landlock"
    with pytest.raises(SettingError, match="bubblewrap: there is no program bwrap") as caught:
        find_backend(CodeConfig(backend="bubblewrap"))
    assert "install the package bubblewrap" in str(caught.value)


def test_find_backend_does_without_user_namespaces() -> None:
    """In a user namespace that allows no others, as a kernel or container may."""
    require_backend("bubblewrap")
    require_backend("landlock")
    program = (
        "from megatron_resrl.config.schema_questions import CodeConfig\n"
        "from megatron_resrl.sandbox.backends import find_backend, try_backend\n"
        "print(find_backend(CodeConfig()))\n"
        "print(try_backend('bubblewrap').problem)\n"
    )
    close = 'echo 0 > /proc/sys/user/max_user_namespaces && exec "$@"'
    found = subprocess.run(
        ["unshare", "-Ur", "sh", "-c", close, "sh", sys.executable, "-c", program],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=600,
    )
    chosen, problem = found.stdout.splitlines()
    assert chosen == "landlock"
    assert problem.startswith("bwrap: Creating new namespace failed")


@pytest.mark.usefixtures("untried")
def test_try_backend_refuses_a_sandbox_that_holds_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(backends.ISOLATIONS, "landlock", "none")
    problem = try_backend("landlock").problem
    assert problem is not None
    assert "the kernel lets a program in it do more: it opens sockets, starts processes" in problem


@pytest.mark.setting("reward.code.backend")
def test_code_reward_uses_the_backend_of_the_settings() -> None:
    require_backend("bubblewrap")
    require_backend("landlock")
    writes = "```\nopen('/tmp/file', 'w').write('1')\nprint(1)\n```"
    tests = {"inputs": [""], "outputs": ["1"]}
    for backend, score in (("bubblewrap", 1.0), ("landlock", 0.0)):
        settings = CodeConfig(backend=backend, timeout_s=20.0)
        assert code_reward(writes, tests, settings=settings) == score


@pytest.mark.setting("reward.code.allow_unsandboxed")
def test_find_backend_wants_to_be_told_of_no_sandbox() -> None:
    with pytest.raises(SettingError, match=r"set reward.code.allow_unsandboxed to true"):
        find_backend(CodeConfig(backend="rlimits"))
    allowed = CodeConfig(backend="rlimits", allow_unsandboxed=True, timeout_s=20.0)
    assert find_backend(allowed) == "rlimits"
    tests = {"inputs": ["1"], "outputs": ["2"]}
    assert code_reward("```\nprint(int(input()) + 1)\n```", tests, settings=allowed) == 1.0
