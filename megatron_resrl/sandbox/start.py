"""Starts the first process of a sandbox, on whatever the kernel lets this user do."""

from __future__ import annotations

import dataclasses
import json
import os
import platform
import re
import select
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from megatron_resrl.sandbox.inside.confinement import Isolation
from megatron_resrl.sandbox.inside.zygote import Setup
from megatron_resrl.sandbox.interpreter import LOADER_CACHE, Interpreter, find_interpreter

NOBODY = 65534
START_S = 30.0
"""Seconds until a sandbox is ready; usually 0.1."""
_OWN_COUNTS = (5, 14)
"""Linux version from which on processes are counted by user namespace."""
_CODE = Path(__file__).resolve().parent / "inside"
_ROOT, _PACKAGES = "/sandbox", "/packages"
_MODULE = "megatron_resrl.sandbox.inside.zygote"
_ENVIRONMENT = {"PYTHONHASHSEED": "0", "PYTHONUTF8": "1"}


class CannotStart(Exception):
    """There is no such sandbox here; says why."""


@dataclasses.dataclass
class Started:
    """A first process that is ready."""

    process: subprocess.Popen[bytes]
    connection: socket.socket


def start(isolation: Isolation, packages: str | None = None) -> Started:
    """Starts the first process of a sandbox and waits until it is ready.

    It ends with the thread that has called this.

    Args:
        isolation: What holds its programs.
        packages: Folder of modules that they may import beside the standard library.

    Raises:
        CannotStart: Not here.
    """
    interpreter = find_interpreter()
    as_root = isolation == "namespaces" and _kernel_root()
    setup = Setup(
        isolation=isolation,
        user=NOBODY if as_root else None,
        own_users=isolation == "namespaces" and _kernel() >= _OWN_COUNTS,
        readable=[
            *(*interpreter.folders, *interpreter.libraries, LOADER_CACHE),
            *([packages] if packages else []),
        ],
        packages=_PACKAGES if packages and isolation == "namespaces" else packages,
    )
    own, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    python = [interpreter.executable, "-s", "-S", "-P", "-B", "-m", _MODULE]
    python += [str(its.fileno()), json.dumps(dataclasses.asdict(setup))]
    try:
        if isolation == "namespaces":
            process = _start_bubblewrap(python, its, interpreter, packages, as_root)
        else:
            root = str(_CODE.parents[2])
            process = _popen(python, [its.fileno()], root)
    except OSError as error:
        own.close()
        raise CannotStart(f"{error.filename or python[0]}: {error.strerror}") from error
    finally:
        its.close()
    return _ready(Started(process, own))


def _ready(started: Started) -> Started:
    readable, _, _ = select.select([started.connection], [], [], START_S)
    if readable and started.connection.recv(16) == b"ready":
        return started
    started.connection.close()
    started.process.kill()
    _, errors = started.process.communicate()
    lines = errors.decode(errors="replace").strip().splitlines()
    raise CannotStart(lines[-1] if lines else f"not ready after {START_S:g} s")


def _popen(
    command: Sequence[str], descriptors: Sequence[int], root: str
) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        env={**_ENVIRONMENT, "PYTHONPATH": root},
        pass_fds=descriptors,
        start_new_session=True,
    )


def _start_bubblewrap(
    python: Sequence[str],
    connection: socket.socket,
    interpreter: Interpreter,
    packages: str | None,
    as_root: bool,
) -> subprocess.Popen[bytes]:
    bubblewrap = shutil.which("bwrap")
    if bubblewrap is None:
        raise CannotStart("there is no program bwrap (Debian's package bubblewrap)")
    command = [bubblewrap, *_namespaces(), *_files(interpreter, packages)]
    descriptors = [connection.fileno()]
    if not as_root:
        return _popen([*command, "--", *python], descriptors, _ROOT)
    # The kernel does not count processes of root. So programs run as nobody, whom bubblewrap knows
    # only if the user namespace is told by us.
    told, tells = os.pipe()
    waits, goes_on = os.pipe()
    command += ["--info-fd", str(tells), "--userns-block-fd", str(waits)]
    command += ["--cap-add", "CAP_SETUID", "--cap-add", "CAP_SETGID", "--uid", "0", "--gid", "0"]
    try:
        process = _popen([*command, "--", *python], [*descriptors, tells, waits], _ROOT)
        os.close(tells)
        tells = -1  # Its other end shows when bubblewrap has ended.
        try:
            _map_users(told)
        except OSError:
            process.kill()
            process.communicate()
            raise
        os.write(goes_on, b"1")
    finally:
        for each in (told, tells, waits, goes_on):
            if each >= 0:
                os.close(each)
    return process


def _map_users(info: int) -> None:
    """Gives the user namespace that bubblewrap tells of root, and nobody, of this one.

    Args:
        info: Descriptor by which it tells the number of its process; nothing if it has failed,
            which its errors explain.
    """
    number = json.loads(_whole(info) or "{}").get("child-pid")
    if number is not None:
        for name in ("uid_map", "gid_map"):
            Path(f"/proc/{number}/{name}").write_text(f"0 0 1\n{NOBODY} {NOBODY} 1\n")


def _whole(descriptor: int) -> str:
    """A JSON object that is written to a pipe, whose other end stays open."""
    text, end = "", time.monotonic() + START_S
    while not text.rstrip().endswith("}") and time.monotonic() < end:
        readable, _, _ = select.select([descriptor], [], [], START_S)
        piece = os.read(descriptor, 4096).decode() if readable else ""
        if not piece:
            break
        text += piece
    return text


def _namespaces() -> Iterator[str]:
    yield from ("--unshare-user", "--unshare-ipc", "--unshare-pid", "--unshare-net")
    yield from ("--unshare-uts", "--unshare-cgroup-try", "--hostname", "sandbox")
    yield from ("--die-with-parent", "--new-session")
    yield from ("--cap-add", "CAP_SYS_ADMIN")  # The first process's; programs lose it.


def _files(interpreter: Interpreter, packages: str | None) -> Iterator[str]:
    """An empty file system in memory with what Python needs, read-only."""
    shown = {path: path for path in (interpreter.executable, *interpreter.folders)}
    for path in interpreter.libraries:
        folder, name = os.path.split(path)
        shown[os.path.join(os.path.realpath(folder), name)] = os.path.realpath(path)
    if packages is not None:
        shown[_PACKAGES] = packages
    shown[f"{_ROOT}/megatron_resrl/sandbox/inside"] = str(_CODE)
    for name in ("/lib", "/lib64", "/bin", "/usr/lib64"):
        if os.path.islink(name):
            yield from ("--symlink", os.readlink(name), name)
    # Everybody may pass through folders made so; through those that bubblewrap adds, not always.
    folders = {str(each) for path in shown for each in Path(path).parents} - {"/"}
    for path in sorted(folders):
        yield from ("--dir", path)
    for path, source in shown.items():
        yield from ("--ro-bind", source, path)
    for path in interpreter.hidden:
        yield from ("--tmpfs", path, "--remount-ro", path)
    yield from ("--ro-bind-try", LOADER_CACHE, LOADER_CACHE)
    for name in ("null", "zero", "full", "random", "urandom"):
        yield from ("--dev-bind", f"/dev/{name}", f"/dev/{name}")
    yield from ("--dir", "/tmp", "--chdir", "/tmp", "--remount-ro", "/")


def _kernel() -> tuple[int, int]:
    found = re.match(r"(\d+)\.(\d+)", platform.release())
    return (int(found[1]), int(found[2])) if found else (0, 0)


def _kernel_root() -> bool:
    """Whether this is the kernel's root, and not only that of a user namespace."""
    if os.geteuid() != 0:
        return False
    inside, outside, _ = Path("/proc/self/uid_map").read_text().split()[:3]
    return inside == outside == "0"
