"""The first process of a sandbox: forks one process for each program, and never sees what they get.

runner    forked before there is a program, so that none waits for it; gets mounts, processes and
          System V objects of its own, and forks the
guard     process 1 there: takes the next request, gives up its rights, starts the program, ends it
          in time, and says how it ended; what the program has left ends with the guard
request   of the caller, over a socket: a role, bounds, and descriptors
program   gives up the rest, and runs

    python -m megatron_resrl.sandbox.inside.zygote SOCKET '{"isolation": "namespaces", ...}'
"""

from __future__ import annotations

import builtins
import contextlib
import fcntl
import gc
import json
import os
import select
import signal
import socket
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from megatron_resrl.sandbox.inside import confinement, examiner, libc, program
from megatron_resrl.sandbox.inside.confinement import Bounds, Isolation

ROLES: dict[str, Callable[[], int]] = {
    "script": program.run_script,
    "functions": program.serve_functions,
    "examiner": examiner.examine,
}
DESCRIPTORS = 8
"""Most that a request has."""
_LONGEST_REQUEST = 4096
"""Bytes."""
_FREE = 32
"""From this number on descriptors wait for their place."""
_PR_SET_PDEATHSIG = 1
_COMMON = (
    *("math", "collections", "itertools", "functools", "heapq", "bisect", "re", "string", "random"),
    *(
        "typing",
        "dataclasses",
        "operator",
        "copy",
        "datetime",
        "statistics",
        "threading",
        "decimal",
    ),
    "fractions",
)
"""Modules that most programs import; loaded once here."""


@dataclass(frozen=True)
class Setup:
    """Of all programs of a sandbox."""

    isolation: Isolation
    user: int | None
    """Whom programs run as; None: as whom this process runs."""
    own_users: bool
    """Whether the kernel counts processes in this sandbox alone."""
    readable: Sequence[str]
    """Paths that programs may read, where no namespace hides the others."""
    packages: str | None
    """Folder of further modules."""


def main(connection: socket.socket, setup: Setup) -> None:
    """Starts programs until the caller is gone."""
    for name in _COMMON:
        __import__(name)
    # Programs import the standard library and `packages`; what is ours has been imported.
    sys.path.remove(os.environ["PYTHONPATH"])
    os.environ.clear()
    if setup.packages is not None:
        sys.path.append(setup.packages)
        os.environ.update(OPENBLAS_NUM_THREADS="1", OMP_NUM_THREADS="1")  # numpy's would be many.
    vars(builtins).update(exit=sys.exit, quit=sys.exit)  # Elsewhere the module `site` does so.
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # Nobody waits for runners.
    gc.freeze()
    connection.sendall(b"ready")
    while True:
        taken, takes = os.pipe()
        if os.fork() == 0:
            os.close(taken)
            _run(connection, takes, setup)
        os.close(takes)
        if not os.read(taken, 1) and not _drop_request(connection):
            return
        os.close(taken)


def _drop_request(connection: socket.socket) -> bool:
    """Answers a request for which there is no guard by its end; False: the caller is gone."""
    message, descriptors, _, _ = socket.recv_fds(connection, _LONGEST_REQUEST, DESCRIPTORS)
    for each in descriptors:
        os.close(each)
    return bool(message)


def _run(connection: socket.socket, takes: int, setup: Setup) -> None:
    """The runner: makes the guard, and is it where there are no namespaces.

    Args:
        connection: To the caller, whose next request it takes.
        takes: Pipe to say so.
        setup: Of the sandbox.
    """
    with contextlib.suppress(BaseException):  # Who waits for the program hears that it is lost.
        if setup.isolation == "namespaces":
            confinement.fresh_namespaces()
            if os.fork():
                os._exit(0)
            confinement.fresh_tmp()
        message, descriptors, _, _ = socket.recv_fds(connection, _LONGEST_REQUEST, DESCRIPTORS)
        if not message:
            os._exit(0)
        os.write(takes, b".")
        os.close(takes)
        connection.close()
        request = json.loads(message)
        bounds = Bounds(float(request["seconds"]), int(request["memory"]))
        status, *given = descriptors
        _guard(request["role"], status, given, bounds, setup)
    os._exit(1)


def _guard(role: str, status: int, given: list[int], bounds: Bounds, setup: Setup) -> None:
    # A handler of Python makes a signal readable at the other end of a pipe.
    ended, wakes = os.pipe()
    os.set_blocking(wakes, False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(wakes)
    confinement.drop_privileges(setup.user)
    _end_with_parent(setup)
    confinement.set_limits(bounds, setup.isolation, setup.own_users)
    started = time.monotonic()
    process = os.fork()
    if process == 0:
        _become_program(role, given, setup)
    for each in given:
        os.close(each)
    code = _wait(process, status, ended, started + bounds.seconds)
    if setup.isolation != "namespaces":  # Elsewhere all end with process 1, which is this one.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process, signal.SIGKILL)
    said = {"code": code, "seconds": time.monotonic() - started}
    os.write(status, json.dumps(said).encode())
    os._exit(0)


def _end_with_parent(setup: Setup) -> None:
    if setup.isolation != "namespaces":  # Those end with the sandbox's first process.
        libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _wait(process: int, status: int, ended: int, deadline: float) -> int | None:
    """The program's exit status, or minus a signal; None: its time is over, or nobody waits."""
    poll = select.poll()
    poll.register(ended, select.POLLIN)
    poll.register(status, 0)  # Its end is told without being asked for.
    while (left := deadline - time.monotonic()) > 0:
        for descriptor, _ in poll.poll(1000 * left):
            if descriptor == status:
                return None
            os.read(ended, 512)
        found, code = os.waitpid(process, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(code)
    return None


def _become_program(role: str, given: list[int], setup: Setup) -> None:
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    os.setsid()
    _end_with_parent(setup)
    places = [fcntl.fcntl(each, fcntl.F_DUPFD, _FREE) for each in given]
    for place, each in enumerate(places):
        os.dup2(each, place)
    os.closerange(len(places), confinement.OPEN_FILES)
    os.chdir("/tmp" if setup.isolation == "namespaces" else "/")
    if setup.isolation == "landlock":
        confinement.only_read(setup.readable)
    confinement.filter_calls(setup.isolation, setup.own_users)
    program.fresh_streams()
    code = 1
    try:
        code = ROLES[role]()
        program.finish()
    finally:
        os._exit(code)


if __name__ == "__main__":
    main(socket.socket(fileno=int(sys.argv[1])), Setup(**json.loads(sys.argv[2])))
