"""Calls of the C library that Python has no function for."""

from __future__ import annotations

import ctypes
import os
from typing import Any

_LIBC = ctypes.CDLL(None, use_errno=True)

CLONE_NEWNS, CLONE_NEWIPC, CLONE_NEWPID = 0x00020000, 0x08000000, 0x20000000
MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_REC, MS_PRIVATE = 2, 4, 8, 1 << 14, 1 << 18
"""From linux/sched.h and linux/mount.h."""


def checked(result: int, call: str) -> int:
    """The result of a call.

    Raises:
        OSError: It is below 0.
    """
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{call}: {os.strerror(number)}")
    return result


def prctl(option: int, *arguments: int) -> int:
    """Sets or asks for something of this process; the result is below 0 after an error."""
    return int(_LIBC.prctl(option, *map(ctypes.c_ulong, (*arguments, 0, 0, 0, 0)[:4])))


def capset(header: ctypes.Array[Any], data: ctypes.Array[Any]) -> int:
    """Sets the capabilities of this thread; the result is below 0 after an error."""
    return int(_LIBC.capset(header, data))


def unshare(flags: int) -> None:
    """Gives this process namespaces of its own."""
    checked(_LIBC.unshare(flags), "unshare")


def mount(kind: str | None, target: str, flags: int, options: str | None = None) -> None:
    """Puts a file system of some kind at a place, or changes the flags of what is there."""
    place, type_, data = (each and each.encode() for each in (target, kind, options))
    checked(_LIBC.mount(b"none", place, type_, ctypes.c_ulong(flags), data), "mount")


def syscall(number: int, *arguments: Any) -> int:
    """A system call by its number; the result is below 0 after an error."""
    return int(_LIBC.syscall(ctypes.c_long(number), *arguments))
