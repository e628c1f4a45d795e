"""One host: CPUs, memory, shared memory, network cards, ports."""

from __future__ import annotations

import os
import shutil
import socket
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import psutil

_SHARED_MEMORY = "/dev/shm"


@dataclass(frozen=True)
class HostFacts:
    """Of one host. Sizes in bytes."""

    cpus: int = 1
    """Hardware threads."""
    cpu_quota: float | None = None
    """CPUs that the control group may use at a time; None: all."""
    memory_total: int = 0
    memory_available: int = 0
    memory_limit: int | None = None
    """Of the control group; None: none."""
    swap_used: int = 0
    shared_memory: tuple[int, int] | None = None
    """Size of /dev/shm, and what is free of it; None: there is none."""
    infiniband: list[str] = field(default_factory=list)
    """InfiniBand and RoCE devices."""
    interfaces: list[str] = field(default_factory=list)
    """Network interfaces."""
    addresses: list[str] = field(default_factory=list)
    """Of the host's own name."""
    name_error: str | None = None
    """Why the host's own name has no address."""
    numa_cpus: dict[int, list[int]] = field(default_factory=dict)
    """CPUs of each NUMA node."""
    ports_in_use: list[int] = field(default_factory=list)
    """Of the ports asked about, those that another process listens at."""


def gather_host(ports: list[int], root: Path = Path("/")) -> HostFacts:
    """The facts of this host.

    Args:
        ports: That a run on this host would listen at.
        root: Where `proc`, `sys` and `dev` are.
    """
    memory = psutil.virtual_memory()
    addresses, name_error = _own_addresses()
    return HostFacts(
        cpus=os.cpu_count() or 1,
        cpu_quota=cpu_quota(root),
        memory_total=memory.total,
        memory_available=memory.available,
        memory_limit=memory_limit(root),
        swap_used=psutil.swap_memory().used,
        shared_memory=_shared_memory(root),
        infiniband=_names(root / "sys/class/infiniband"),
        interfaces=_names(root / "sys/class/net"),
        addresses=addresses,
        name_error=name_error,
        numa_cpus=numa_cpus(root),
        ports_in_use=[port for port in ports if not _is_free(port)],
    )


def memory_limit(root: Path) -> int | None:
    """The smallest memory limit of this process's control group and those above it, in bytes."""
    found = [
        int(text)
        for text in _control_group(root, "memory", "memory.max", "memory.limit_in_bytes")
        if text.isdecimal()
    ]
    # Version 1 writes a number near 2^63 for no limit.
    real = [each for each in found if each < 2**60]
    return min(real, default=None)


def cpu_quota(root: Path) -> float | None:
    """The smallest CPU quota of this process's control group and those above it, in CPUs."""
    quotas = []
    for text in _control_group(root, "cpu", "cpu.max", "cpu.max"):
        quota, _, period = text.partition(" ")
        if quota.isdecimal() and period.isdecimal() and int(period):
            quotas.append(int(quota) / int(period))
    return min(quotas, default=None)


def numa_cpus(root: Path) -> dict[int, list[int]]:
    """CPUs of each NUMA node."""
    folder = root / "sys/devices/system/node"
    return {
        int(path.name.removeprefix("node")): cpu_list(_text(path / "cpulist"))
        for path in sorted(folder.glob("node[0-9]*"))
    }


def cpu_list(text: str) -> list[int]:
    """`0-3,8` -> 0, 1, 2, 3, 8."""
    found: list[int] = []
    for part in filter(None, text.strip().split(",")):
        first, _, last = part.partition("-")
        found += range(int(first), int(last or first) + 1)
    return found


def _control_group(root: Path, controller: str, new: str, old: str) -> Iterator[str]:
    """A file of this process's control group and of all above it: of version 2, or of version 1."""
    for line in _text(root / "proc/self/cgroup").splitlines():
        _, names, path = [*line.split(":", 2), "", ""][:3]
        base, name = root / "sys/fs/cgroup", new
        if names:
            if controller not in names.split(","):
                continue
            base, name = base / controller, old
        place = base / path.lstrip("/")
        # In a container the path of the host may not be there; its own root is.
        for folder in (place, *place.parents):
            if (text := _text(folder / name).strip()) != "":
                yield text
            if folder == base:
                break


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError:
        return ""


def _names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []


def _shared_memory(root: Path) -> tuple[int, int] | None:
    try:
        usage = shutil.disk_usage(root / _SHARED_MEMORY.lstrip("/"))
    except OSError:
        return None
    return usage.total, usage.free


def _own_addresses() -> tuple[list[str], str | None]:
    try:
        found = socket.getaddrinfo(socket.gethostname(), None, type=socket.SOCK_STREAM)
    except OSError as error:
        return [], error.strerror or str(error)
    return list(dict.fromkeys(str(each[4][0]) for each in found)), None


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", port))
        except OSError:
            return False
    return True
