"""The file system of the output folder: speed, room, and whether renames and locks hold."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from megatron_resrl.doctor.processes import ask
from megatron_resrl.platform.disk import existing_parent
from megatron_resrl.platform.ending import end_with_parent

_PROBE_S = 120.0
_LOCK_PROBE_S = 20.0
_BLOCK = 2**22
_FILE_BYTES, _QUICK_FILE_BYTES = 2**28, 2**24
_SYNCS = 10
_RENAMES = 50
_CONTENT_BYTES = 2**14

_TRY_LOCK = """\
import fcntl, sys
lock = getattr(fcntl, sys.argv[2])
with open(sys.argv[1], "r+") as file:
    try:
        lock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        sys.exit(3)
"""
"""A process of its own, because a process never excludes itself from what fcntl locks."""
_EXCLUDED = 3


@dataclass(frozen=True)
class FolderFacts:
    """Of the file system of one folder, seen from one host. Rates in bytes/s."""

    path: str
    """The folder, or the nearest one above it that exists."""
    kind: str = "?"
    """Type of the file system, e.g. `nfs4`."""
    mount: str = ""
    """Where it is mounted."""
    total: int = 0
    free: int = 0
    free_files: int | None = None
    """New files that there is room for; None: the file system does not say."""
    write: float | None = None
    read: float | None = None
    """Of a file just written, after its pages were dropped; some file servers keep them."""
    sync_s: float | None = None
    """Median seconds until 4 KB are on the disk."""
    torn_renames: int | None = None
    """Times that a reader saw a file missing or half-written while it was replaced."""
    exclusive: bool | None = None
    """Whether a file can be created by one process only."""
    locks: dict[str, str] = field(default_factory=dict)
    """`flock` and `lockf` -> `holds`, `does not hold`, or why it cannot be asked for."""
    clock_ahead_s: float | None = None
    """By how much the file server's clock is ahead of this host's."""
    failure: str | None = None
    """Why the rest is not known."""


def gather_folder(path: str, *, quick: bool, limit_s: float = _PROBE_S) -> FolderFacts:
    """Tries the file system of a folder in a process of its own; nothing stays there.

    Args:
        path: The folder; need not exist.
        quick: Smaller files.
        limit_s: Seconds after which a file system that does not answer is given up.
    """
    request = json.dumps({"path": path, "quick": quick})
    said = ask([sys.executable, "-m", __name__, request], limit_s)
    facts: dict[str, Any] = {"path": path}
    trying = "it was looked for"
    for each in said.objects:
        trying = each.pop("trying", trying)
        facts |= each
    if said.failure is not None:
        facts["failure"] = f"{said.failure}, while {trying}"
    return FolderFacts(**facts)


def main(path: str, *, quick: bool) -> None:
    """Prints the facts of a folder as JSON objects, step by step.

    Args:
        path: The folder; need not exist.
        quick: Smaller files.
    """
    end_with_parent()
    try:
        place = existing_parent(Path(path))
        _tell(path=str(place))
        _try(place, quick)
    except OSError as error:
        _tell(failure=error.strerror or str(error))


def _try(place: Path, quick: bool) -> None:
    kind, mount = mount_of(place, Path("/proc/self/mounts").read_text(encoding="utf-8"))
    _tell(kind=kind, mount=mount, trying="its size was asked for")
    usage, files = shutil.disk_usage(place), os.statvfs(place)
    _tell(total=usage.total, free=usage.free, free_files=files.f_favail if files.f_files else None)
    _tell(trying="a file was written")
    with tempfile.TemporaryDirectory(prefix=".doctor-", dir=place) as name:
        folder = Path(name)
        marker = folder / "marker"
        before = time.time()
        marker.write_text("marker")
        _tell(clock_ahead_s=marker.stat().st_mtime - (before + time.time()) / 2)
        size = min(_QUICK_FILE_BYTES if quick else _FILE_BYTES, usage.free // 2)
        write, read = _speeds(folder / "large", size)
        _tell(write=write, read=read, sync_s=_sync_seconds(folder / "small"))
        _tell(trying="a file was replaced")
        _tell(torn_renames=_torn_renames(folder))
        _tell(exclusive=_is_exclusive(folder / "exclusive"), trying="a lock was asked for")
        _tell(locks={name: _lock(folder / name, name) for name in ("flock", "lockf")})


def mount_of(place: Path, table: str) -> tuple[str, str]:
    """Type and mount point of a path's file system.

    Args:
        place: An absolute path.
        table: The contents of /proc/self/mounts.
    """
    best = ("?", "")
    for line in table.splitlines():
        _, mount, kind = line.split(" ")[:3]
        mount = mount.replace("\\040", " ")
        if len(mount) >= len(best[1]) and Path(mount) in (place, *place.parents):
            best = (kind, mount)
    return best


def _speeds(path: Path, size: int) -> tuple[float, float]:
    block = os.urandom(_BLOCK)  # Some file systems compress.
    blocks = max(1, size // _BLOCK)
    started = time.perf_counter()
    with path.open("wb", buffering=0) as file:
        for _ in range(blocks):
            file.write(block)
        os.fsync(file.fileno())
    written = time.perf_counter()
    with path.open("rb", buffering=0) as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        begun = time.perf_counter()
        while file.read(_BLOCK):
            pass
        done = time.perf_counter()
    path.unlink()
    return blocks * _BLOCK / (written - started), blocks * _BLOCK / (done - begun)


def _sync_seconds(path: Path) -> float:
    times = []
    with path.open("wb", buffering=0) as file:
        for _ in range(_SYNCS):
            started = time.perf_counter()
            file.write(b"\0" * 4096)
            os.fsync(file.fileno())
            times.append(time.perf_counter() - started)
    return statistics.median(times)


def _torn_renames(folder: Path) -> int:
    """Replaces a file again and again while another thread reads it."""
    path, new = folder / "replaced", folder / "new"
    path.write_bytes(b"\0" * _CONTENT_BYTES)
    finished = threading.Event()
    torn = 0

    def read() -> None:
        nonlocal torn
        while not finished.is_set():
            try:
                content = path.read_bytes()
                torn += len(content) != _CONTENT_BYTES or len(set(content)) != 1
            except FileNotFoundError:
                torn += 1

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    try:
        for number in range(_RENAMES):
            new.write_bytes(bytes([number % 256]) * _CONTENT_BYTES)
            os.replace(new, path)
    finally:
        finished.set()
        reader.join()
    return torn


def _is_exclusive(path: Path) -> bool:
    flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY
    os.close(os.open(path, flags))
    try:
        os.close(os.open(path, flags))
    except FileExistsError:
        return True
    return False


def _lock(path: Path, kind: str) -> str:
    """Whether a lock keeps another process out."""
    path.touch()
    with path.open("r+") as file:
        try:
            getattr(fcntl, kind)(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            return error.strerror or str(error)
        command = [sys.executable, "-S", "-E", "-c", _TRY_LOCK, str(path), kind]
        with contextlib.suppress(subprocess.TimeoutExpired):
            tried = subprocess.run(command, capture_output=True, timeout=_LOCK_PROBE_S, check=False)
            return "holds" if tried.returncode == _EXCLUDED else "does not hold"
    return f"no answer within {_LOCK_PROBE_S:.0f} s"


def lock_files(folder: Path) -> Iterator[tuple[str, Path]]:
    """Kind and path of the files that hosts try to lock in a folder that they share."""
    yield from ((kind, folder / f"lock.{kind}") for kind in ("flock", "lockf"))


def _tell(**facts: Any) -> None:
    print(json.dumps(facts), flush=True)


if __name__ == "__main__":
    main(**json.loads(sys.argv[1]))
