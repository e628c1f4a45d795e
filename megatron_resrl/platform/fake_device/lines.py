"""Which line of the product led to an operation."""

from __future__ import annotations

import sys
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

_PRODUCT = str(Path(__file__).resolve().parents[2]) + "/"
_UNSEEN = tuple(
    _PRODUCT + path for path in ("platform/fake_device/", "platform/one_queue.py", "planning/")
)
"""Not part of a run."""
_LIBRARIES = ("megatron/core/", "transformer_engine/", "mbridge/")


@dataclass(frozen=True)
class KindRule:
    """What the memory is that a piece of code takes.

    Attributes:
        path: Part of the file's path.
        function: Name of the function; None: any.
        kind: For instance "optimizer".
    """

    path: str
    function: str | None
    kind: str


@dataclass(frozen=True)
class Origin:
    """Where an operation comes from.

    Attributes:
        line: `policy/gpt.py:12`, the innermost line of the product below `megatron_resrl/`, and in
            brackets the innermost line of a library that it called; "elsewhere" without any.
        kind: Of the innermost rule that fits; None: no rule does.
    """

    line: str
    kind: str | None


def origin(rules: Sequence[KindRule] = ()) -> Origin:
    """The origin of the operation that is being worked out."""
    frame: FrameType | None = sys._getframe(1)
    line, library, kind = "", "", None if rules else ""
    while frame is not None and (not line or kind is None):
        path = frame.f_code.co_filename
        if kind is None:
            name = frame.f_code.co_name
            fitting = (r for r in rules if r.path in path and r.function in (None, name))
            kind = next((rule.kind for rule in fitting), None)
        if not line and path.startswith(_PRODUCT) and not path.startswith(_UNSEEN):
            line = f"{path.removeprefix(_PRODUCT)}:{frame.f_lineno}"
        elif not line:
            library = library or _library_line(path, frame.f_lineno)
        frame = frame.f_back
    if line and library:
        line = f"{line} ({library})"
    return Origin(line or library or "elsewhere", kind or None)


def _library_line(path: str, line: int) -> str:
    file = _library_file(path)
    return f"{file}:{line}" if file else ""


def _library_file(path: str) -> str:
    """`megatron/core/...py` of a library's file; empty for any other file."""
    for library in _LIBRARIES:
        if f"/{library}" in path:
            return path[path.rindex(f"/{library}") + 1 :]
    return ""


def caller(
    functions: Container[tuple[str, str]],
) -> tuple[tuple[str, str] | None, Mapping[str, Any]]:
    """The innermost function among `functions` that led to the operation being worked out.

    Args:
        functions: (file below `megatron_resrl/`, or of a library from its name on, name of the
            function).

    Returns:
        The function and its local variables; None and nothing if none of them is running.
    """
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        code = frame.f_code
        path = code.co_filename.removeprefix(_PRODUCT)
        function = (_library_file(path) or path, code.co_name)
        if function in functions:
            return function, frame.f_locals
        frame = frame.f_back
    return None, {}
