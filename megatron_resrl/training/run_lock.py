"""One run per output directory: a file that names the process that writes into it.

    <output_dir>/run.lock    host, process, job, command, start; the time of change is a heartbeat

A lock outlives a process that is killed. On the same host its process is looked for; from another
host it is watched for a while, because the clocks of two hosts need not agree.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import shlex
import socket
import sys
import threading
import time
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

from megatron_resrl.errors import InputError, RunError
from megatron_resrl.platform.distributed import (
    broadcast_object,
    run_on_every_rank,
    run_on_rank_zero,
)
from megatron_resrl.platform.run_files import LOCK
from megatron_resrl.platform.run_holder import Holder, born_at, read_holder, this_machine

logger = logging.getLogger(__name__)

HEARTBEAT_INTERVAL_S = 5.0
"""Seconds between heartbeats."""
SILENCE_S = 60.0
"""A holder on another host that shows no heartbeat for so many seconds has died."""
SEEN_WITHIN_S = 30.0
"""Within which other hosts must see a new lock; file systems keep what they knew of a folder."""
_SETTLE_S = 1.0
"""After a dead run's lock is replaced: for another start that does the same at this moment."""


class FolderInUse(InputError):
    """Another run writes into the output directory."""


class LockLost(RunError):
    """Another run has taken the output directory over."""


class RunLock(contextlib.AbstractContextManager):
    """Holds the lock of an output directory while the block runs. Every rank opens one.

    Rank 0 takes it; where it cannot, all ranks end alike.

    Raises:
        FolderInUse: When it is entered.
        InputError: The directory cannot be made or written to, or is another one on other hosts.
    """

    def __init__(self, output_dir: Path) -> None:
        self.path = Path(output_dir) / LOCK
        self._heartbeat: _Heartbeat | None = None

    def confirm(self) -> None:
        """On rank 0: the directory still belongs to this run.

        Raises:
            LockLost: Another run took this one for dead, e.g. because its host stood still.
        """
        taken_by = self._heartbeat and self._heartbeat.taken_by
        if taken_by is not None:
            raise LockLost(
                f"{self.path.parent} was taken over by {taken_by}; this run ends, what it "
                "wrote before stays"
            )

    def __enter__(self) -> RunLock:
        run_on_rank_zero(self._take)
        try:
            self._require_shared()
        except BaseException:
            self._release()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._release()

    def _release(self) -> None:
        if self._heartbeat is None:
            return
        self._heartbeat.end()
        found = read_holder(self.path)
        if found is not None and found.token == self._heartbeat.own.token:
            self.path.unlink(missing_ok=True)

    def _require_shared(self) -> None:
        """Every host sees the lock that rank 0 has written. Collective.

        Raises:
            InputError: On all ranks: a host does not.
        """
        own = self._heartbeat.own if self._heartbeat else None
        written: Holder = broadcast_object(own)
        here = socket.gethostname()
        if here != written.host and os.environ.get("LOCAL_RANK", "0") == "0":
            run_on_every_rank(lambda: _require_seen(self.path, written))
        else:
            run_on_every_rank(lambda: None)

    def _take(self) -> None:
        own = this_process()
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            while not _create(self.path, own):
                found = read_holder(self.path)
                if found is None and not self.path.exists():
                    continue  # Its run has just ended.
                if _alive(self.path, found, own):
                    found = read_holder(self.path) or found
                    raise FolderInUse(
                        f"output_dir = {str(self.path.parent)!r} is in use by "
                        f"{found or 'a run that is starting'}; wait for its end, or choose another "
                        f"output_dir (its lock is {self.path})"
                    )
                logger.warning("%s was left by %s, which is gone", self.path, found or "a run")
                if _replace(self.path, found, own):
                    break
        except OSError as error:
            raise InputError(
                f"output_dir = {str(self.path.parent)!r} cannot be written to: {error}; give a "
                "directory that this user may write"
            ) from error
        self._heartbeat = _Heartbeat(self.path, own)


class _Heartbeat:
    """Shows in a thread that the run that has a lock is alive, until the lock is another run's.

    Attributes:
        own: This run.
        taken_by: The other run; None: the lock is this run's.
    """

    def __init__(self, path: Path, own: Holder) -> None:
        self.own = own
        self.taken_by: Holder | None = None
        self._path = path
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="heartbeat", daemon=True)
        self._thread.start()

    def end(self) -> None:
        """Returns when the lock is no longer touched."""
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stop.wait(HEARTBEAT_INTERVAL_S):
            # A file system may be away for a while; a lock that was deleted by hand stays away.
            with contextlib.suppress(OSError):
                found = read_holder(self._path)
                if found is not None and found.token != self.own.token:
                    self.taken_by = found
                    return
                if found is not None:
                    os.utime(self._path)


def _require_seen(path: Path, written: Holder) -> None:
    """Waits for a lock of another host, which network file systems show late.

    Raises:
        InputError: It does not come.
    """
    until = time.monotonic() + SEEN_WITHIN_S
    found = read_holder(path)
    while found is None or found.token != written.token:
        if time.monotonic() > until:
            raise InputError(
                f"output_dir = {str(path.parent)!r} is not the folder that host {written.host} "
                "writes into; give one on a file system that all hosts share"
            )
        time.sleep(0.5)
        found = read_holder(path)


def this_process() -> Holder:
    """This process as the writer of an output directory."""
    return Holder(
        host=socket.gethostname(),
        pid=os.getpid(),
        started=time.time(),
        command=shlex.join(_without_keys(sys.argv)),
        job=os.environ.get("SLURM_JOB_ID"),
        restarts=_restarts(),
        machine=this_machine(),
        born=born_at(os.getpid()) or "",
        token=uuid.uuid4().hex,
    )


def _without_keys(command: Sequence[str]) -> Iterator[str]:
    """A command line for everyone who may read the directory."""
    hide = False
    for word in command:
        name, equals, _ = word.partition("=")
        is_key = name.endswith("api_key")
        yield "..." if hide else f"{name}=..." if is_key and equals else word
        hide = is_key and not equals


def _restarts() -> int:
    count = os.environ.get("SLURM_RESTART_COUNT", "0")
    return int(count) if count.isdecimal() else 0


def _alive(path: Path, holder: Holder | None, own: Holder) -> bool:
    """Whether the run that holds a lock goes on; may watch it for `SILENCE_S`."""
    gone = None if holder is None else holder.is_gone()
    if gone is not None:
        return not gone
    restarted = (
        holder is not None
        and holder.job is not None
        and holder.job == own.job
        and holder.restarts < own.restarts
    )
    if restarted:
        return False  # Slurm starts a job again when all of it has ended.
    logger.warning(
        "%s belongs to %s: waiting up to %.0f s for a sign that it is alive",
        path,
        holder or "a run that did not write it whole",
        SILENCE_S,
    )
    first, deadline = _last_heartbeat(path), time.monotonic() + SILENCE_S
    while time.monotonic() < deadline:
        time.sleep(min(1.0, SILENCE_S / 10))
        seen = _last_heartbeat(path)
        if seen != first:
            return seen is not None  # None: it has ended in the meantime.
    return False


def _last_heartbeat(path: Path) -> int | None:
    """The last change of a file, read past the cache of a network file system."""
    try:
        with path.open("rb") as file:
            return os.fstat(file.fileno()).st_mtime_ns
    except FileNotFoundError:
        return None


def _create(path: Path, own: Holder) -> bool:
    """Writes a new lock; False if there is one already."""
    try:
        descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
    except FileExistsError:
        return False
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(json.dumps(asdict(own), indent=2) + "\n")
    except OSError:
        path.unlink()
        raise
    return True


def _replace(path: Path, dead: Holder | None, own: Holder) -> bool:
    """Puts a lock in the place of a dead run's; False if another start was faster."""
    if read_holder(path) != dead:
        return False
    new = path.with_name(f"{path.name}.{own.token}")
    new.write_text(json.dumps(asdict(own), indent=2) + "\n", encoding="utf-8")
    os.replace(new, path)
    time.sleep(_SETTLE_S)
    return read_holder(path) == own
