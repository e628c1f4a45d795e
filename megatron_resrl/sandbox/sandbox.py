"""A sandbox that stays warm: in it each program gets a process, a folder and namespaces."""

from __future__ import annotations

import contextlib
import json
import os
import select
import socket
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from megatron_resrl.sandbox.inside.confinement import Isolation
from megatron_resrl.sandbox.start import Started, start

Role = Literal["script", "functions", "examiner"]
"""`script`: reads input and prints; `functions`: answers calls; `examiner`: tests functions."""

LONGEST_OUTPUT = 4 * 2**20
"""Bytes that a program may print; one that prints more is ended."""
KEPT_ERRORS = 16 * 2**10
"""Bytes of what it writes to standard error; the rest is dropped."""
GRACE_S = 5.0
"""Seconds beyond a program's time after which its sandbox, which does not answer, is ended."""

TRIES = 2
"""Of a program whose sandbox was lost: what ends it may be another program's doing, or the
machine's."""


@dataclass(frozen=True)
class Ran:
    """How a program ended."""

    code: int | None
    """Exit status, or minus the signal that ended it; None: it was ended, as `why` says."""
    output: bytes = b""
    errors: bytes = b""
    results: bytes = b""
    """Of an examiner."""
    why: Literal["", "time", "output", "lost"] = ""
    """`time`: it took too long; `output`: it printed too much; `lost`: nobody said how it ended,
    because its sandbox has ended or does not answer."""
    seconds: float = 0.0
    """Of its process, without what it took to start."""


@dataclass(eq=False)
class Program:
    """A program that runs."""

    deadline: float
    """Of the monotonic clock; the sandbox itself ends it `GRACE_S` earlier."""
    status: int
    streams: dict[int, bytearray]
    """Descriptor to read -> what has been read."""
    limits: dict[int, int]
    """Descriptor -> bytes that are kept."""
    names: dict[int, str]
    said: bytearray = field(default_factory=bytearray)
    too_long: bool = False

    def take(self, descriptor: int, piece: bytes) -> None:
        """Keeps what has been read, as far as there is room."""
        text, limit = self.streams[descriptor], self.limits[descriptor]
        text += piece[: limit - len(text)]
        # Errors may be cut off; an answer may not.
        if len(piece) > 0 and len(text) == limit and self.names[descriptor] != "errors":
            self.too_long = True

    def close(self) -> None:
        """Ends it, if it still runs."""
        for each in (self.status, *self.streams):
            os.close(each)


class Sandbox:
    """Runs programs, one or a few at a time. Use it as a context manager, in one thread.

    The first program starts it, and so does the first after it has been lost.

    Args:
        isolation: What holds the programs.
        memory_mb: MiB of addresses that a process may have.
        packages: Folder of modules that they may import beside the standard library.
    """

    def __init__(
        self, isolation: Isolation, *, memory_mb: int, packages: str | None = None
    ) -> None:
        self._isolation: Isolation = isolation
        self._memory = memory_mb * 2**20
        self._packages = packages
        self._started: Started | None = None

    def __enter__(self) -> Sandbox:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends all of it."""
        if self._started is None:
            return
        started, self._started = self._started, None
        started.connection.close()  # It ends by itself when nobody is there.
        with contextlib.suppress(subprocess.TimeoutExpired):
            started.process.wait(GRACE_S / 10)
        started.process.kill()
        started.process.communicate()

    def run(self, role: Role, job: bytes, given: bytes = b"", *, seconds: float) -> Ran:
        """Runs a program to its end; a second time, in a new sandbox, if it was lost.

        Args:
            role: What it does.
            job: The program.
            given: Its standard input.
            seconds: Until it is ended.

        Raises:
            CannotStart: There is no such sandbox here.
        """
        for _ in range(TRIES):
            [ran] = self.finish([self.begin(role, job, given, seconds=seconds)])
            if ran.why != "lost":
                break
        return ran

    def begin(
        self,
        role: Role,
        job: bytes,
        given: bytes = b"",
        *,
        seconds: float,
        channel: socket.socket | None = None,
    ) -> Program:
        """Starts a program, see `run`.

        Args:
            role: What it does.
            job: The program.
            given: Its standard input.
            seconds: Until it is ended.
            channel: By which functions are called, or call.

        Raises:
            CannotStart: There is no such sandbox here.
        """
        started = self._ready()
        status, its_status = socket.socketpair()
        kept = {
            "script": {"output": LONGEST_OUTPUT, "errors": KEPT_ERRORS},
            "functions": {},
            "examiner": {"results": LONGEST_OUTPUT},
        }[role]
        pipes = {name: os.pipe() for name in kept}
        ends = {name: writes for name, (_, writes) in pipes.items()}
        stdin, code, nowhere = _file(given), _file(job), os.open(os.devnull, os.O_WRONLY)
        gives = [its_status.fileno(), stdin]
        gives += [ends.get("output", nowhere), ends.get("errors", nowhere), code]
        gives += [] if channel is None else [channel.fileno()]
        gives += [ends["results"]] if "results" in ends else []
        request = {"role": role, "seconds": seconds, "memory": self._memory}
        try:
            socket.send_fds(started.connection, [json.dumps(request).encode()], gives)
        except OSError:
            self.close()  # It has ended, and with it what reads of this program.
        finally:
            its_status.close()
            for each in (stdin, code, nowhere, *ends.values()):
                os.close(each)
        names = {reads: name for name, (reads, _) in pipes.items()}
        return Program(
            deadline=time.monotonic() + seconds + GRACE_S,
            status=status.detach(),
            streams={each: bytearray() for each in names},
            limits={each: kept[name] for each, name in names.items()},
            names=names,
        )

    def finish(self, programs: Sequence[Program], until: Program | None = None) -> list[Ran]:
        """Reads what programs write until they have ended, and closes them.

        Args:
            programs: That run; reading all of them keeps each from waiting for a reader.
            until: The end of this one is the end of all.
        """
        _read(programs, until)
        found = [_ran(each) for each in programs]
        for each in programs:
            each.close()
        # The end of others than `until` was not waited for.
        ended = found if until is None else [found[programs.index(until)]]
        if any(each.why == "lost" for each in ended):
            self.close()
        return found

    def _ready(self) -> Started:
        if self._started is not None and self._started.process.poll() is not None:
            self.close()
        if self._started is None:
            self._started = start(self._isolation, self._packages)
        return self._started


def _read(programs: Sequence[Program], until: Program | None) -> None:
    """Reads of all programs until all have ended, or one prints too much or takes too long."""
    poll = select.poll()
    whose: dict[int, Program] = {}
    for program in programs:
        for each in (program.status, *program.streams):
            whose[each] = program
            poll.register(each, select.POLLIN)
    while whose:
        left = min(each.deadline for each in whose.values()) - time.monotonic()
        ready = poll.poll(max(0.0, 1000 * left))
        if not ready:
            return
        for descriptor, _ in ready:
            program = whose[descriptor]
            piece = os.read(descriptor, 1 << 16)
            if descriptor == program.status:
                program.said += piece
            else:
                program.take(descriptor, piece)
            if not piece:
                poll.unregister(descriptor)
                del whose[descriptor]
            ended = all(each is not program for each in whose.values())
            if program.too_long or (program is until and ended):
                return


def _file(content: bytes) -> int:
    """A file without a name, to be read from its beginning."""
    file = os.memfd_create("given")
    try:
        with open(file, "wb", closefd=False) as writer:
            writer.write(content)
        return os.open(f"/proc/self/fd/{file}", os.O_RDONLY | os.O_CLOEXEC)
    finally:
        os.close(file)


def _ran(program: Program) -> Ran:
    texts: dict[str, Any] = {
        program.names[each]: bytes(text) for each, text in program.streams.items()
    }
    try:
        said = json.loads(bytes(program.said))
    except ValueError:
        return Ran(None, **texts, why="output" if program.too_long else "lost")
    code = said["code"]
    if program.too_long:
        return Ran(None, **texts, why="output", seconds=said["seconds"])
    return Ran(code, **texts, why="time" if code is None else "", seconds=said["seconds"])
