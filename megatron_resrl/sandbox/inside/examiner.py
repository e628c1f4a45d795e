"""Runs tests written as Python, in a process that the tested program cannot reach.

What the tests call is the program's; arguments and results cross as data, and are compared here.
"""

from __future__ import annotations

import ast
import builtins
import importlib
import json
import os
import sys
from collections.abc import Mapping
from typing import Any

from megatron_resrl.sandbox.inside.program import CHANNEL, JOB, RESULTS, read_all, socket_file
from megatron_resrl.sandbox.inside.values import decoded, encoded

LARGEST_ANSWER = 4 * 2**20
"""Bytes of one answer of the program."""


class ProgramEnded(BaseException):
    """The program answers no more. No `except Exception` of a test takes it for an answer."""


class TestedError(Exception):
    """The program raised an error of its own, or of a type that is not built in."""


class _Program:
    """The other end of `program.serve_functions`."""

    def __init__(self) -> None:
        self._channel = socket_file(CHANNEL)
        self.asked = False
        """Whether it may be the program's fault that a test fails."""
        self.ended = False

    def ask(self, start: Remote | None, names: list[str], call: Any) -> Any:
        """Looks something up in the program, or calls it; see `program._answer`."""
        self.asked = True
        request = encoded((start, names, call), _number_of)
        try:
            self._channel.write(f"{request}\n".encode())
            self._channel.flush()
            line = self._channel.readline(LARGEST_ANSWER)
            answer = decoded(line, lambda number: Remote(self, int(number), []))
        except (OSError, ValueError):  # Nothing, too much, or nonsense.
            answer = None
        match answer:
            case ("value", value):
                return value
            case ("error", str(kind), str(text)):
                raise _error(kind, text)
        self.ended = True
        raise ProgramEnded


def _number_of(value: Any) -> int:
    """What the program knows an object of its own by."""
    if isinstance(value, Remote) and not value._names and value._start is not None:
        return value._start
    raise TypeError(f"tests can give {type(value).__name__} to no function of the program")


def _error(kind: str, text: str) -> Exception:
    found = getattr(builtins, kind, None)
    if isinstance(found, type) and issubclass(found, Exception):
        try:
            error = found(text)
        except TypeError:  # Such as UnicodeDecodeError.
            error = TestedError(f"{kind}: {text}")
    else:
        error = TestedError(f"{kind}: {text}")
    error.__dict__["of_program"] = True
    return error


class Remote:
    """A function, class or object of the program.

    It is equal to nothing, and neither true nor false: that would be for the program to say.
    """

    __slots__ = ("_names", "_program", "_start")
    _names: list[str]
    _program: _Program
    _start: int | None

    def __init__(self, program: _Program, start: int | None, names: list[str]) -> None:
        for name, value in zip(self.__slots__, (names, program, start), strict=True):
            object.__setattr__(self, name, value)

    def __setattr__(self, name: str, value: Any) -> None:
        self._program.ask(self._origin(), [*self._names, "__setattr__"], ([name, value], {}))

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        answer = self._program.ask(self._origin(), [*self._names, name], None)
        if isinstance(answer, Remote):
            return Remote(self._program, self._start, [*self._names, name])
        return answer

    def __call__(self, *arguments: Any, **keywords: Any) -> Any:
        """Calls it with plain data, or objects of the program."""
        call = (list(arguments), keywords)
        return self._program.ask(self._origin(), self._names, call)

    def _origin(self) -> Remote | None:
        return None if self._start is None else Remote(self._program, self._start, [])

    def __eq__(self, other: object) -> bool:
        raise TypeError("an object of the program cannot be compared")

    def __bool__(self) -> bool:
        raise TypeError("an object of the program is neither true nor false")

    __hash__ = None  # type: ignore[assignment]


def tested_names(code: str) -> list[str]:
    """Names that tests use and do not define: those of the program.

    Builtins and modules of the standard library are none: a program could make its own `len` or
    `math`, to look right.

    Args:
        code: Of tests.

    Raises:
        SyntaxError: It is no Python.
    """
    tree = ast.parse(code)
    defined: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            defined.add(node.name)
        elif isinstance(node, ast.arg):
            defined.add(node.arg)
        elif isinstance(node, ast.alias):
            defined.add((node.asname or node.name).partition(".")[0])
        elif isinstance(node, ast.Name) and not isinstance(node.ctx, ast.Load):
            defined.add(node.id)
        elif isinstance(node, ast.ExceptHandler) and node.name:
            defined.add(node.name)
    used = [node.id for node in ast.walk(tree) if isinstance(node, ast.Name)]
    ours = {*defined, *dir(builtins), *sys.stdlib_module_names}
    return [name for name in dict.fromkeys(used) if name not in ours]


def examine() -> int:
    """Runs tests, one after another, and writes a line of JSON on each; returns an exit status.

    The job is {"setup": code, "tests": [code], "names": [of the program], "every": bool}. A line is
    {"passed": bool, "why": text}, or {"unusable": text} if the tests cannot be run.
    """
    job: Mapping[str, Any] = json.loads(read_all(JOB))
    program = _Program()
    scope: dict[str, Any] = {"__name__": "tests"}
    scope |= {name: Remote(program, None, [name]) for name in job["names"]}
    with open(RESULTS, "w", encoding="utf-8") as results:
        for number, code in enumerate([job["setup"], *job["tests"]]):
            line = _line(code, scope)
            if program.ended:  # Whatever a test has caught.
                line = {"passed": False, "why": "ended"}
            if not number and not line.get("passed") and not program.asked:
                line = {"unusable": f"setup: {line.get('unusable') or line['why']}"}
            if number or not line.get("passed"):
                print(json.dumps(line), file=results, flush=True)
            if "unusable" in line or line["why"] == "ended":
                break
            if not line["passed"] and (not job["every"] or not number):
                break
    # Threads of the tests, if there are any, are not waited for.
    sys.stdout.flush()
    os._exit(0)


def _line(code: str, scope: dict[str, Any]) -> dict[str, Any]:
    try:
        _import_modules(code, scope)
        exec(compile(code, "tests.py", "exec"), scope)
    except ProgramEnded:
        return {"passed": False, "why": "ended"}
    except AssertionError:
        return {"passed": False, "why": "wrong"}
    except (ImportError, NameError, SyntaxError) as error:
        if getattr(error, "of_program", False):
            return {"passed": False, "why": type(error).__name__}
        return {"unusable": f"{type(error).__name__}: {error}"}
    except BaseException as error:
        return {"passed": False, "why": type(error).__name__}
    return {"passed": True, "why": ""}


def _import_modules(code: str, scope: dict[str, Any]) -> None:
    """Modules of the standard library that tests use without importing them."""
    for node in ast.walk(ast.parse(code)):
        name = node.id if isinstance(node, ast.Name) else ""
        if name in sys.stdlib_module_names and name not in scope:
            scope[name] = importlib.import_module(name)
