"""Functions of a program, called from outside of its process."""

from __future__ import annotations

import select
import socket
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from megatron_resrl.sandbox.inside.values import decoded, encoded

LARGEST_ANSWER = 4 * 2**20
"""Bytes of one answer."""


class NoAnswer(Exception):
    """The program raised, ended, took too long, or answered nonsense; says which."""


@dataclass(frozen=True)
class _Object:
    """What stays in the program's process; equal to no data."""

    number: int


class Calls:
    """Asks `program.serve_functions` at the other end of a socket.

    Args:
        channel: This end.
        seconds: That each answer may take.
    """

    def __init__(self, channel: socket.socket, seconds: float) -> None:
        self._channel = channel
        self._seconds = seconds
        self._read = bytearray()

    def call(self, function: str, arguments: Sequence[Any]) -> Any:
        """The result of a function.

        Args:
            function: Its name; `Class.method` is called on a new object of the class, and so is a
                method of the class `Solution` where there is no such function.
            arguments: Plain data.

        Raises:
            NoAnswer: There is no result.
        """
        end = time.monotonic() + self._seconds
        owner, _, name = function.rpartition(".")
        if not owner:
            try:
                self._ask(None, [name], None, end)
            except NoAnswer:
                owner = "Solution"
        start = self._ask(None, owner.split("."), ([], {}), end) if owner else None
        return self._ask(start, [name], (list(arguments), {}), end)

    def _ask(self, start: Any, names: list[str], call: Any, end: float) -> Any:
        request = encoded((start, names, call), lambda value: value.number)
        try:
            self._channel.settimeout(max(0.001, end - time.monotonic()))
            self._channel.sendall(f"{request}\n".encode())
            answer = decoded(self._line(end), _Object)
        except (OSError, ValueError) as error:
            raise NoAnswer(str(error) or type(error).__name__) from None
        match answer:
            case ("value", value):
                return value
            case ("error", kind, text):
                raise NoAnswer(f"{kind}: {text}")
        raise NoAnswer("no answer as it should be")

    def _line(self, end: float) -> bytes:
        start = 0
        while (at := self._read.find(b"\n", start)) < 0:
            start = len(self._read)
            left = end - time.monotonic()
            if left <= 0 or not select.select([self._channel], [], [], left)[0]:
                raise TimeoutError("took too long")
            piece = self._channel.recv(1 << 16)
            if not piece:
                raise ValueError("ended")
            self._read += piece
            if len(self._read) > LARGEST_ANSWER:
                raise ValueError("answered too much")
        line = bytes(self._read[:at])
        del self._read[: at + 1]
        return line
