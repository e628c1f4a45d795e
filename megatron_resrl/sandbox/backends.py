"""Which sandbox there is on this machine, tried out."""

from __future__ import annotations

import functools
import os
from dataclasses import dataclass
from typing import Literal

import httpx

from megatron_resrl.config.schema_questions import CodeConfig
from megatron_resrl.errors import SettingError
from megatron_resrl.sandbox.inside.confinement import Isolation, landlock_version
from megatron_resrl.sandbox.inside.seccomp import can_filter
from megatron_resrl.sandbox.local import LocalRunner
from megatron_resrl.sandbox.remote import RemoteRunner, ServerError
from megatron_resrl.sandbox.runners import Runner
from megatron_resrl.sandbox.sandbox import Sandbox
from megatron_resrl.sandbox.start import CannotStart

Local = Literal["bubblewrap", "landlock", "rlimits"]
Backend = Local | Literal["remote"]
ISOLATIONS: dict[Local, Isolation] = {
    "bubblewrap": "namespaces",
    "landlock": "landlock",
    "rlimits": "none",
}
"""Backend -> what holds its programs."""
_SETTING = "reward.code.backend"
_HOW = (
    "install the package bubblewrap (Debian, RHEL) and allow user namespaces (sysctl "
    "user.max_user_namespaces above 0, kernel.apparmor_restrict_unprivileged_userns = 0; docker "
    "run --security-opt seccomp=unconfined), take a kernel with Landlock (Linux 5.13), or use "
    "backend: remote"
)
_TRIAL_S = 10.0

_ATTEMPTS = """
import os, socket
print("runs")
def reach(what, attempt):
    try:
        attempt()
        print(what)
    except OSError:
        pass
reach("opens sockets", socket.socket)
reach("starts processes", lambda: os.fork() or os._exit(0))
reach("reads other files", lambda: open("/etc/passwd"))
reach("lists /proc", lambda: os.listdir("/proc"))
reach("opens them to write", lambda: open("/etc/passwd", "r+"))
"""
"""What no program may be able to do; printed if it can. It changes nothing where it can."""


@dataclass(frozen=True)
class Trial:
    """What a backend of this machine has shown."""

    backend: Local
    problem: str | None
    """Why it cannot be used; None: it can."""


@functools.cache
def try_backend(backend: Local) -> Trial:
    """Starts a sandbox and lets a program try what none may do.

    Args:
        backend: Of this machine.
    """
    isolation = ISOLATIONS[backend]
    if isolation != "none" and not can_filter():
        machine = os.uname().machine
        return Trial(backend, f"the system calls of {machine} are not known")
    if isolation == "landlock" and not landlock_version():
        return Trial(backend, "the kernel has no Landlock, or it is off")
    try:
        with Sandbox(isolation, memory_mb=CodeConfig().memory_mb) as sandbox:
            ran = sandbox.run("script", _ATTEMPTS.encode(), seconds=_TRIAL_S)
    except CannotStart as error:
        return Trial(backend, str(error))
    first, *could = ran.output.decode().splitlines() or [""]
    if first != "runs":
        return Trial(backend, f"a program did not run in it ({_end(ran.errors) or ran.why})")
    if could and backend != "rlimits":  # Which promises nothing.
        return Trial(backend, f"the kernel lets a program in it do more: it {', '.join(could)}")
    return Trial(backend, None)


def wanted_backends(code: CodeConfig) -> tuple[Backend, ...]:
    """The backends that settings allow, the best first.

    Raises:
        SettingError: They contradict each other.
    """
    if code.backend == "auto":
        return ("bubblewrap", "landlock")
    if code.backend == "remote" and not code.url:
        raise SettingError(_SETTING, code.backend, "no server is named", "set reward.code.url")
    if code.backend == "rlimits" and not code.allow_unsandboxed:
        problem = "programs of a model could reach, read and write whatever this user can"
        fix = "choose auto, or set reward.code.allow_unsandboxed to true if that is meant"
        raise SettingError(_SETTING, code.backend, problem, fix)
    return (code.backend,)


def find_backend(code: CodeConfig) -> Backend:
    """The backend that settings mean on this machine.

    Raises:
        SettingError: There is none that may be used.
    """
    problems = []
    for each in wanted_backends(code):
        if each == "remote":
            return each
        trial = try_backend(each)
        if trial.problem is None:
            return each
        problems.append(f"{each}: {trial.problem}")
    problem = f"no sandbox here ({'; '.join(problems)})"
    raise SettingError(_SETTING, code.backend, problem, _HOW)


def make_runner(code: CodeConfig) -> Runner:
    """What runs programs; it starts with the first of them.

    Raises:
        SettingError: There is no backend that may be used.
    """
    backend = find_backend(code)
    if backend == "remote":
        return RemoteRunner(code.url or "", code.timeout_s, code.memory_mb)
    sandbox = Sandbox(ISOLATIONS[backend], memory_mb=code.memory_mb, packages=code.packages)
    return LocalRunner(sandbox, code.timeout_s)


def ask_server(code: CodeConfig) -> None:
    """Lets the server of `reward.code.url` run a program.

    Raises:
        SettingError: It does not.
    """
    url = code.url or ""
    try:
        ran = RemoteRunner(url, code.timeout_s, code.memory_mb).run("print(6 * 7)", "")
    except (ServerError, httpx.InvalidURL) as error:
        fix = "start SandboxFusion there, or correct the address"
        raise SettingError("reward.code.url", url, str(error), fix) from error
    if ran.output.strip() != b"42":
        problem = f"the server ran print(6 * 7), and the output was {ran.output[:40]!r}"
        raise SettingError("reward.code.url", url, problem, "see the server's log")


def _end(errors: bytes) -> str:
    lines = errors.decode(errors="replace").strip().splitlines()
    return lines[-1] if lines else ""
