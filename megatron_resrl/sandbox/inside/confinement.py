"""How a process gives up what it may do, step by step and for good."""

from __future__ import annotations

import ctypes
import os
import resource
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from megatron_resrl.sandbox.inside import libc, seccomp

Isolation = Literal["namespaces", "landlock", "none"]
"""`namespaces`: processes, mounts and users of its own; `landlock`: a kernel without those for this
user; `none`: limits only."""

OPEN_FILES = 64
THREADS = 32
"""Of a program; each may also be called a process by the kernel."""
LARGEST_FILE = 16 * 2**20
"""Bytes; also of the whole of /tmp."""
STACK = 64 * 2**20
"""Bytes of the first thread's stack: programs set Python's recursion limit high."""

_PR_SET_DUMPABLE, _PR_CAPBSET_DROP, _PR_SET_NO_NEW_PRIVS = 4, 24, 38
_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL = 47, 4
_LAST_CAPABILITY = 63
_CAPABILITY_VERSION = 0x20080522

_LANDLOCK_CREATE, _LANDLOCK_ADD, _LANDLOCK_RESTRICT = 444, 445, 446
_LANDLOCK_VERSION = 1
_READ_FILE, _READ_FOLDER = 1 << 2, 1 << 3
_RIGHTS = {1: 13, 2: 14, 3: 15, 4: 15, 5: 16}
"""Of files, by version of Landlock: how many bits there are; from 5 on no more."""
_NETWORK, _SCOPES = 0b11, 0b11
"""Binding and connecting (from version 4); abstract sockets and signals (from version 6)."""


@dataclass(frozen=True)
class Bounds:
    """What one program may use."""

    seconds: float
    """Until it is ended; as much time of the processor, rounded up."""
    memory: int
    """Bytes of addresses."""


def fresh_namespaces() -> None:
    """Lets this process see its own mounts and System V objects; its children are alone."""
    libc.unshare(libc.CLONE_NEWNS | libc.CLONE_NEWIPC | libc.CLONE_NEWPID)


def fresh_tmp() -> None:
    """Puts an empty folder in memory at /tmp, which ends with this process's namespace."""
    libc.mount(None, "/", libc.MS_REC | libc.MS_PRIVATE)
    flags = libc.MS_NOSUID | libc.MS_NODEV | libc.MS_NOEXEC
    libc.mount("tmpfs", "/tmp", flags, f"size={LARGEST_FILE},nr_inodes=1024,mode=1777")


def drop_privileges(user: int | None) -> None:
    """Gives up all capabilities, and the way to new ones.

    Args:
        user: Whom to become; None: this process's user has no more rights than others.
    """
    if user is not None:
        os.setgroups([])
        os.setresgid(user, user, user)
        os.setresuid(user, user, user)
    for capability in range(_LAST_CAPABILITY + 1):
        libc.prctl(_PR_CAPBSET_DROP, capability)  # Without CAP_SETPCAP there are none to drop.
    libc.prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL)
    header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION, 0)
    libc.checked(libc.capset(header, (ctypes.c_uint32 * 6)()), "capset")
    libc.checked(libc.prctl(_PR_SET_NO_NEW_PRIVS, 1), "PR_SET_NO_NEW_PRIVS")
    libc.checked(libc.prctl(_PR_SET_DUMPABLE, 0), "PR_SET_DUMPABLE")


def set_limits(bounds: Bounds, isolation: Isolation, own_users: bool) -> None:
    """Limits of the kernel on this process and its children.

    Args:
        bounds: Of time and memory.
        isolation: Without namespaces nothing may be written.
        own_users: Whether processes are counted in this sandbox alone (Linux 5.14).
    """
    seconds = int(bounds.seconds) + 1
    limits = {
        resource.RLIMIT_CPU: seconds,
        resource.RLIMIT_AS: bounds.memory,
        resource.RLIMIT_NOFILE: OPEN_FILES,
        resource.RLIMIT_FSIZE: 0 if isolation == "landlock" else LARGEST_FILE,
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_MEMLOCK: 0,
        resource.RLIMIT_MSGQUEUE: 0,
        resource.RLIMIT_STACK: STACK,
    }
    if own_users:
        limits[resource.RLIMIT_NPROC] = THREADS
    for limit, value in limits.items():
        most = resource.getrlimit(limit)[1]
        value = value if most == resource.RLIM_INFINITY else min(value, most)
        resource.setrlimit(limit, (value, value))


def filter_calls(isolation: Isolation, own_users: bool) -> None:
    """Refuses system calls, see `seccomp.filter_calls`."""
    if isolation == "namespaces":
        seccomp.filter_calls(threads=own_users)
    elif isolation == "landlock":
        seccomp.filter_calls(threads=False, among_others=os.getpid())


def landlock_version() -> int:
    """What the kernel has of Landlock; 0: nothing."""
    return max(0, libc.syscall(_LANDLOCK_CREATE, None, 0, _LANDLOCK_VERSION))


def only_read(paths: Sequence[str]) -> None:
    """Lets this process open nothing but what is below some paths, and only to read.

    Raises:
        OSError: The kernel refuses it.
    """
    version = landlock_version()
    attributes = [(1 << _RIGHTS.get(version, 16)) - 1]
    attributes += [_NETWORK] if version >= 4 else []
    attributes += [_SCOPES] if version >= 6 else []
    handled = (ctypes.c_uint64 * len(attributes))(*attributes)
    ruleset = libc.checked(
        libc.syscall(_LANDLOCK_CREATE, handled, ctypes.sizeof(handled), 0), "landlock"
    )
    for path in paths:
        _allow_reading(ruleset, path)
    libc.checked(libc.syscall(_LANDLOCK_RESTRICT, ruleset, 0), "landlock")
    os.close(ruleset)


def _allow_reading(ruleset: int, path: str) -> None:
    class Below(ctypes.Structure):
        _pack_ = 1
        _fields_ = (("rights", ctypes.c_uint64), ("parent", ctypes.c_int32))

    try:
        parent = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    rights = _READ_FILE | (_READ_FOLDER if os.path.isdir(path) else 0)
    rule = Below(rights, parent)
    libc.checked(libc.syscall(_LANDLOCK_ADD, ruleset, 1, ctypes.byref(rule), 0), "landlock")
    os.close(parent)
