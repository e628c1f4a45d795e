"""A filter of system calls, for programs that have nothing to do but compute, read and print."""

from __future__ import annotations

import ctypes
import errno
import platform
import struct
from dataclasses import dataclass

from megatron_resrl.sandbox.inside.libc import checked, prctl

_PR_SET_SECCOMP, _MODE_FILTER = 22, 2
_LOAD, _EQUAL, _AT_LEAST, _ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
"""Instructions of the classic Berkeley Packet Filter, from linux/bpf_common.h."""
_NUMBER, _ARCHITECTURE, _FIRST_ARGUMENT, _SECOND_ARGUMENT = 0, 4, 16, 24
"""Offsets in `struct seccomp_data`; of arguments, the lower half on little-endian machines."""
_ALLOW, _KILL, _ERROR = 0x7FFF0000, 0x80000000, 0x00050000
_CLONE_THREAD = 0x00010000

FIRST_NEW = 424
"""From this number on, calls are the same on all machines and came with Linux 5.1 and later, so
that libraries do without. Among them are io_uring, clone3, pidfd_getfd, and fchmodat2."""


@dataclass(frozen=True)
class _Machine:
    """Numbers of calls, from the kernel's syscall tables."""

    audit: int
    """AUDIT_ARCH of linux/audit.h."""
    clone: int
    fork: tuple[int, ...]
    """Calls that always make processes."""
    execute: tuple[int, ...]
    sockets: tuple[int, ...]
    """Those that reach others; socketpair reaches nobody."""
    memory: tuple[int, ...]
    """Memory that RLIMIT_AS does not count, or that outlives its process: memfd_create, message
    queues, shared memory and semaphores, asynchronous input and output."""
    kernel: tuple[int, ...]
    """Mounts, namespaces, modules, keys, tracing, clocks, filters."""
    signals: tuple[int, ...]
    """To other processes: kill, tkill, rt_sigqueueinfo, rt_tgsigqueueinfo."""
    tgkill: int
    fcntl: int
    attributes: tuple[int, ...]
    """Mode, owner, times, extended attributes and length of a file by its path: Landlock, at least
    its first version, leaves them open."""
    scheduling: tuple[int, ...]
    """Limits and priorities, also of other processes of the user."""


_MACHINES = {
    "x86_64": _Machine(
        audit=0xC000003E,
        clone=56,
        fork=(57, 58),
        execute=(59, 322),
        sockets=(41, 42, 43, 49, 50, 288),
        memory=(
            319,
            29,
            30,
            31,
            64,
            65,
            66,
            68,
            69,
            70,
            71,
            220,
            *range(240, 246),
            *range(206, 211),
        ),
        kernel=(
            *(101, 103, 134, 135, 139, 154, 155, 156, 159, 161, *range(163, 181), 212, 227, 246),
            *(248, 249, 250, 256, 272, 278, 279, 298, 300, 301, 303, 304, 305, 308, 310, 311, 312),
            *(313, 317, 320, 321, 323),
        ),
        signals=(62, 200, 129, 297),
        tgkill=234,
        fcntl=72,
        attributes=(
            *(76, 90, 91, 92, 93, 94, 132, 188, 189, 190, 197, 198, 199, 235, 260, 261, 268, 280),
        ),
        scheduling=(141, 142, 144, 203, 251, 302, 314),
    ),
    "aarch64": _Machine(
        audit=0xC00000B7,
        clone=220,
        fork=(),
        execute=(221, 281),
        sockets=(198, 200, 201, 202, 203, 242),
        memory=(279, *range(186, 198), *range(180, 186), *range(0, 5)),
        kernel=(
            *(18, 39, 40, 41, 42, 51, 60, 75, 89, 92, 97, 104, 105, 106, 112, 116, 117, 142, 161),
            *(162, 170, 171, 217, 218, 219, 224, 225, 238, 239, 241, 262, 263, 264, 265, 266, 268),
            *(270, 271, 272, 273, 277, 280, 282, 294),
        ),
        signals=(129, 130, 138, 240),
        tgkill=131,
        fcntl=25,
        attributes=(5, 6, 7, 14, 15, 16, 45, 52, 53, 54, 55, 88),
        scheduling=(30, 118, 119, 122, 140, 261, 274),
    ),
}


def can_filter() -> bool:
    """Whether the numbers of this machine's system calls are known."""
    return platform.machine() in _MACHINES


def filter_calls(*, threads: bool, among_others: int | None = None) -> None:
    """Installs the filter in this process, for good; it has to have no new privileges.

    New processes, other programs, sockets, mounts, namespaces, tracing and memory beyond RLIMIT_AS
    are refused with EPERM, calls that came with Linux 5.1 and later with ENOSYS.

    Args:
        threads: Whether the process may start threads.
        among_others: The process's number where it sees processes that are none of its own: then
            signals to them, their limits, and what Landlock leaves open of files are refused, too.

    Raises:
        OSError: The kernel refuses it, or this machine is not known.
    """
    machine = _MACHINES.get(platform.machine())
    if machine is None:
        raise OSError(errno.ENOSYS, f"no system calls of {platform.machine()} are known")
    program = b"".join(_instructions(machine, threads, among_others))
    code = ctypes.create_string_buffer(program, len(program))

    class Program(ctypes.Structure):
        _fields_ = (("length", ctypes.c_ushort), ("code", ctypes.c_void_p))

    found = Program(len(program) // 8, ctypes.cast(code, ctypes.c_void_p))
    checked(prctl(_PR_SET_SECCOMP, _MODE_FILTER, ctypes.addressof(found), 0, 0), "PR_SET_SECCOMP")


def _instructions(machine: _Machine, threads: bool, among_others: int | None) -> list[bytes]:
    refuse = _returns(_ERROR | errno.EPERM)
    denied = (*machine.fork, *machine.execute, *machine.sockets, *machine.memory, *machine.kernel)
    code = [
        # A program that calls the kernel as on another machine would use other numbers.
        *(_load(_ARCHITECTURE), _step(_EQUAL, machine.audit, 1, 0), _returns(_KILL)),
        *(_load(_NUMBER), _step(_AT_LEAST, FIRST_NEW, 0, 1), _returns(_ERROR | errno.ENOSYS)),
    ]
    if among_others is not None:
        denied += (*machine.signals, *machine.attributes, *machine.scheduling)
        # abort() and pthread_kill() send signals to the process itself.
        code += [_step(_EQUAL, machine.tgkill, 0, 4), _load(_FIRST_ARGUMENT)]
        code += [_step(_EQUAL, among_others, 1, 0), refuse, _returns(_ALLOW)]
        # F_SETOWN and F_SETOWN_EX make the kernel send signals to somebody else.
        code += [_step(_EQUAL, machine.fcntl, 0, 5), _load(_SECOND_ARGUMENT)]
        code += [_step(_EQUAL, 8, 1, 0), _step(_EQUAL, 15, 0, 1), refuse, _returns(_ALLOW)]
    for number in denied:
        code += [_step(_EQUAL, number, 0, 1), refuse]
    if threads:
        code += [_step(_EQUAL, machine.clone, 0, 3), _load(_FIRST_ARGUMENT)]
        code += [_step(_ANY_BIT, _CLONE_THREAD, 1, 0), refuse]
    else:
        code += [_step(_EQUAL, machine.clone, 0, 1), refuse]
    return [*code, _returns(_ALLOW)]


def _load(offset: int) -> bytes:
    return _instruction(_LOAD, 0, 0, offset)


def _step(kind: int, value: int, if_true: int, if_false: int) -> bytes:
    """A comparison, and how many instructions are skipped after it."""
    return _instruction(kind, if_true, if_false, value)


def _returns(verdict: int) -> bytes:
    return _instruction(_RETURN, 0, 0, verdict)


def _instruction(code: int, if_true: int, if_false: int, operand: int) -> bytes:
    return struct.pack("=HBBI", code, if_true, if_false, operand)
