"""The process that writes into an output directory, as its lock names it; without torch."""

from __future__ import annotations

import datetime
import json
import os
import socket
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Holder:
    """The process that a lock names."""

    host: str
    pid: int
    started: float
    """When the run started, seconds since 1970."""
    command: str
    job: str | None = None
    """Slurm's number of the job."""
    restarts: int = 0
    """Times that Slurm had started the job before."""
    machine: str = ""
    """Boot and process namespace of the host, within which `pid` names a process."""
    born: str = ""
    """Start of the process in the kernel's time, because process numbers are reused."""
    token: str = ""
    """Differs between any two locks."""

    def __str__(self) -> str:
        since = datetime.datetime.fromtimestamp(self.started).astimezone()
        job = f", job {self.job}" if self.job else ""
        return (
            f"process {self.pid} on host {self.host}{job}, since "
            f"{since.isoformat(' ', 'seconds')} ({self.command})"
        )

    def is_gone(self) -> bool | None:
        """Whether the process has ended; None: it is on another machine, which cannot be asked."""
        if (self.host, self.machine) != (socket.gethostname(), this_machine()):
            return None
        born = born_at(self.pid)
        return born is None or born not in ("", self.born)


def read_holder(path: Path) -> Holder | None:
    """Whom a lock names; None if there is none, or if it is not written whole."""
    try:
        return Holder(**json.loads(path.read_text(encoding="utf-8")))
    except (FileNotFoundError, ValueError, TypeError):
        return None


def this_machine() -> str:
    """Two containers of one host name may be two machines, or one with two sets of processes."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""


def born_at(pid: int) -> str | None:
    """When a process of this machine started; empty where that is hidden, None if it has ended."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return "" if _exists(pid) else None
    state, *fields = stat.rpartition(")")[2].split()
    return None if state in "ZX" else fields[18]


def _exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
