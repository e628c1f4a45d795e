"""What only several hosts together can find out: shared folders, locks, ports, clocks.

The first rank of each host that has come takes part; the others do nothing.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
import shutil
import socket
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from megatron_resrl.doctor.facts.folder import lock_files
from megatron_resrl.doctor.meeting import Meeting
from megatron_resrl.doctor.processes import NoAnswer, within
from megatron_resrl.platform.disk import existing_parent

VISIBLE_S = 30.0
"""Network file systems keep listings for some seconds."""
_READY_S = 300.0
"""Seconds by which one host may be slower than another in what each looks at alone."""
_STEP_S = 60.0
_CONNECT_S = 5.0
_ALL_PAIRS = 16
"""Hosts up to which every host tries to reach every other."""


@dataclass(frozen=True)
class BetweenFacts:
    """What one host found out about the others."""

    clock_ahead_s: float = 0.0
    """By how much its clock is ahead of that of the first host."""
    clock_error_s: float = 0.0
    """By how much that may be wrong."""
    visible_after_s: float | None = None
    """Until it saw a file of the first host; None: never."""
    locks: dict[str, str] = field(default_factory=dict)
    """`flock` and `lockf` -> `holds` where a lock of the first host keeps it out, `does not hold`,
    or what the system said."""
    created: bool | None = None
    """Whether it created the file that every host tried to create."""
    unreachable: dict[str, str] = field(default_factory=dict)
    """Host -> why no connection to it could be made."""
    unresolved: dict[str, str] = field(default_factory=dict)
    """Host -> why its name is not known here."""
    failure: str | None = None


def gather_between(
    meeting: Meeting,
    hosts: Mapping[int, str],
    output_dir: str,
    *,
    usable: bool = True,
    visible_s: float = VISIBLE_S,
) -> BetweenFacts | None:
    """Tries, together with the other hosts. Called by the first rank of each host.

    Args:
        meeting: Of the job.
        hosts: Host by the number of its first rank.
        output_dir: Folder that a run would write to.
        usable: Whether the folder answered when this host tried it alone.
        visible_s: Seconds in which a host must see a new file of another.

    Returns:
        What this host has found; None: it is the only one.
    """
    if len(hosts) < 2:
        return None
    ranks = sorted(hosts)
    ahead, error = _clock(meeting, ranks)
    unreachable, unresolved = _connections(meeting, hosts)
    found: dict[str, Any] = {}
    try:
        if usable:
            within(4 * _STEP_S, lambda: _share(meeting, ranks, output_dir, visible_s, found))
        else:
            found["failure"] = "it cannot be used there"
    except NoAnswer as silence:
        found["failure"] = str(silence)
    except OSError as problem:
        found["failure"] = problem.strerror or str(problem)
    if meeting.rank == ranks[0] and "created" not in found:
        meeting.write("offer", {})
    return BetweenFacts(
        clock_ahead_s=ahead,
        clock_error_s=error,
        unreachable=unreachable,
        unresolved=unresolved,
        **found,
    )


def neighbours(position: int, count: int) -> list[int]:
    """The hosts that the host at a position tries to reach: all of a few, some of many."""
    if count <= _ALL_PAIRS:
        return [other for other in range(count) if other != position]
    shifts = [2**power for power in range(count.bit_length()) if 2**power < count]
    return [(position + shift) % count for shift in shifts]


def _clock(meeting: Meeting, ranks: Sequence[int]) -> tuple[float, float]:
    """All hosts read their clocks at the same moment, but for the time that a message takes.

    Returns:
        How far this host's clock is ahead of that of the first, and by how much that may be wrong.
        A host that comes too late to read its clock has none that differs.
    """
    meeting.write_own("clock_ready", True)
    if meeting.rank == ranks[0]:
        ready = meeting.collect("clock_ready", ranks, _READY_S)
        meeting.write("clock_now", {"time": time.time(), "ready": list(ready)})
    first = meeting.read("clock_now", 2 * _READY_S)
    now = time.time()
    started = time.perf_counter()
    meeting.write_own("clock_trip", True)
    meeting.read(f"clock_trip/{meeting.rank}", _STEP_S)
    trip = time.perf_counter() - started
    if first is None or meeting.rank not in first["ready"]:
        return 0.0, trip
    return now - first["time"], trip


def _connections(
    meeting: Meeting, hosts: Mapping[int, str]
) -> tuple[dict[str, str], dict[str, str]]:
    """Listens at a port, and connects to those of the other hosts by their names."""
    ranks = sorted(hosts)
    unreachable: dict[str, str] = {}
    unresolved: dict[str, str] = {}
    with _listening() as port:
        meeting.write_own("port", [socket.gethostname(), port])
        listening = meeting.collect("port", ranks, _STEP_S)
        for position in neighbours(ranks.index(meeting.rank), len(ranks)):
            rank = ranks[position]
            if rank not in listening:
                continue  # Named as a rank that does not answer.
            name, other = listening[rank]
            try:
                socket.create_connection((name, other), timeout=_CONNECT_S).close()
            except socket.gaierror as error:
                unresolved[hosts[rank]] = f"{name}: {error.strerror}"
            except OSError as error:
                unreachable[hosts[rank]] = f"{name}:{other}: {error.strerror or error}"
        meeting.write_own("connected", True)
        meeting.collect("connected", ranks, _STEP_S)
    return unreachable, unresolved


@contextlib.contextmanager
def _listening() -> Iterator[int]:
    """A port to which the system accepts connections, which nobody serves."""
    with socket.create_server(("", 0), backlog=1024) as server:
        yield server.getsockname()[1]


def _share(
    meeting: Meeting,
    ranks: Sequence[int],
    output_dir: str,
    visible_s: float,
    found: dict[str, Any],
) -> None:
    """The first host makes a folder and locks files in it; the others look."""
    if meeting.rank == ranks[0]:
        _offer(meeting, ranks, output_dir, visible_s, found)
        return
    offer = meeting.read("offer", _STEP_S)
    if not offer:
        found["failure"] = "the first host cannot use it"
        return
    folder = Path(offer["folder"])
    found["visible_after_s"] = _seen(folder / "marker", offer["token"], visible_s)
    meeting.write_own("looked", found["visible_after_s"] is not None)
    if found["visible_after_s"] is None:
        return
    found["locks"] = {kind: _try_lock(path, kind) for kind, path in lock_files(folder)}
    meeting.read("race", _STEP_S)
    found["created"] = _create(folder / "race")
    meeting.write_own("raced", True)


def _offer(
    meeting: Meeting,
    ranks: Sequence[int],
    output_dir: str,
    visible_s: float,
    found: dict[str, Any],
) -> None:
    token = secrets.token_hex(8)
    folder = existing_parent(Path(output_dir)) / f".doctor-{token}"
    folder.mkdir()
    try:
        (folder / "marker").write_text(token)
        with contextlib.ExitStack() as held:
            for kind, path in lock_files(folder):
                file = held.enter_context(path.open("w"))
                with contextlib.suppress(OSError):  # Said by the facts of the folder.
                    getattr(fcntl, kind)(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            meeting.write("offer", {"folder": str(folder), "token": token})
            looked = meeting.collect("looked", ranks[1:], visible_s + _STEP_S)
            found["visible_after_s"] = 0.0
            meeting.write("race", True)
            found["created"] = _create(folder / "race")
            sharing = [rank for rank, sees in looked.items() if sees]
            meeting.collect("raced", sharing, _STEP_S)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _seen(marker: Path, token: str, visible_s: float) -> float | None:
    started = time.monotonic()
    while time.monotonic() < started + visible_s:
        with contextlib.suppress(OSError):
            os.listdir(marker.parent.parent)  # Brings a kept listing up to date.
            if marker.read_text() == token:
                return time.monotonic() - started
        time.sleep(0.2)
    return None


def _try_lock(path: Path, kind: str) -> str:
    try:
        with path.open("r+") as file:
            getattr(fcntl, kind)(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return "holds"
    except OSError as error:
        return error.strerror or str(error)
    return "does not hold"


def _create(path: Path) -> bool | None:
    try:
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
    except FileExistsError:
        return False
    except OSError:
        return None
    return True
