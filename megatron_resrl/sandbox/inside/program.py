"""Runs a program that nobody trusts, in a process that has given up everything else.

Whatever it does to this process, it can only spoil its own answers: what is right is not here.
"""

from __future__ import annotations

import atexit
import contextlib
import io
import socket
import sys
import threading
import traceback
import types
from typing import Any

from megatron_resrl.sandbox.inside.values import decoded, encoded

JOB, CHANNEL, RESULTS = 3, 4, 5
"""Descriptors that a process gets, behind input, output and errors."""


def read_all(descriptor: int) -> bytes:
    """What a file holds."""
    with open(descriptor, "rb") as file:
        return file.read()


def fresh_streams() -> None:
    """Python's own streams, over the descriptors 0 to 2 of now."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        number = ("stdin", "stdout", "stderr").index(name)
        errors = "surrogateescape" if number < 2 else "backslashreplace"
        raw = io.FileIO(number, mode, closefd=False)
        buffer = io.BufferedReader(raw) if mode == "r" else io.BufferedWriter(raw)
        stream = io.TextIOWrapper(buffer, encoding="utf-8", errors=errors)
        setattr(sys, name, stream)
        setattr(sys, f"__{name}__", stream)


def run_script() -> int:
    """The program as `python program.py` runs it; returns its exit status."""
    return _executed("__main__")[1]


def serve_functions() -> int:
    """The program as `import` loads it; then its functions answer calls until nobody asks."""
    module, status = _executed("solution")
    if status:
        return status
    kept: list[Any] = []

    def keep(value: Any) -> int:
        kept.append(value)
        return len(kept) - 1

    with socket_file(CHANNEL) as channel:
        for line in channel:
            answer = _answer(module, kept, decoded(line, kept.__getitem__))
            channel.write(f"{encoded(answer, keep)}\n".encode())
            channel.flush()
    return 0


def socket_file(descriptor: int) -> Any:
    """A binary file that reads and writes a socket."""
    return socket.socket(fileno=descriptor).makefile("rwb")


def finish() -> None:
    """What an interpreter does at its end: it waits for threads, calls `atexit`'s, and flushes."""
    for thread in threading.enumerate():
        if thread is not threading.current_thread() and not thread.daemon:
            thread.join()
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        stream.flush()


def _executed(name: str) -> tuple[types.ModuleType, int]:
    """The module of the program, and the status with which its first run ended."""
    source = read_all(JOB)
    module = types.ModuleType(name)
    sys.modules[name] = module
    sys.argv = ["program.py"]
    try:
        exec(compile(source, "program.py", "exec"), module.__dict__)
    except SystemExit as error:
        if isinstance(error.code, int) or error.code is None:
            return module, error.code or 0
        print(error.code, file=sys.stderr)
        return module, 1
    except BaseException as error:
        _print_error(error)
        return module, 1
    return module, 0


def _print_error(error: BaseException) -> None:
    with contextlib.suppress(Exception):
        shown = error.__traceback__ and error.__traceback__.tb_next
        traceback.print_exception(type(error), error, shown, file=sys.stderr)


def _answer(module: types.ModuleType, kept: list[Any], request: Any) -> Any:
    """What a request gets: ("value", result), or ("error", type's name, text).

    Args:
        module: Of the program.
        kept: Objects that requests may name by their number.
        request: (object or None for the module, names, None to look something up or (arguments,
            keyword arguments) to call it).
    """
    try:
        start, names, call = request
        found: Any = module if start is None else start
        for name in names:
            found = getattr(found, name)
        return ("value", found if call is None else found(*call[0], **call[1]))
    except Exception as error:
        _print_error(error)
        return ("error", type(error).__name__, str(error)[:1000])
