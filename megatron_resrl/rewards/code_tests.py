"""Tests of programs, as ground truths have them."""

from __future__ import annotations

import ast
import functools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from megatron_resrl.rewards.ground_truths import shown
from megatron_resrl.sandbox.inside.examiner import tested_names
from megatron_resrl.sandbox.runners import Exam

FORMS = (
    'give {"inputs": [...], "outputs": [...]}, the same with "fn_name", or {"asserts": [...]} '
    "(docs/rewards.md, code)"
)


@dataclass(frozen=True)
class PrintedTests:
    """Texts that a program reads, and what it has to print."""

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


@dataclass(frozen=True)
class CalledTests:
    """Arguments of a function, and what it has to return."""

    function: str
    inputs: tuple[Sequence[Any], ...]
    outputs: tuple[Any, ...]


Tests = PrintedTests | CalledTests | Exam


def read_tests(value: Any) -> Tests:
    """Tests of a ground truth.

    Args:
        value: A mapping, JSON of one, or a list of asserts.

    Raises:
        ValueError: There are none that could be run; says what is wrong and would be right.
    """
    return _read_text(value) if isinstance(value, str) else _read(value)


@functools.lru_cache(maxsize=1024)
def _read_text(text: str) -> Tests:
    """All responses of a group have the same tests."""
    return _read(_from_json(text))


def _read(value: Any) -> Tests:
    value = _from_json(value)
    if isinstance(value, (list, tuple)):
        value = {"asserts": value}
    if not isinstance(value, Mapping):
        raise ValueError(f"the ground truth is {shown(value)}, and holds no tests: {FORMS}")
    if "asserts" in value:
        return _exam(value)
    if "inputs" not in value or "outputs" not in value:
        names = ", ".join(map(str, value)) or "nothing"
        raise ValueError(f"the ground truth has the fields {names}, and no tests: {FORMS}")
    inputs, outputs = _items(value, "inputs"), _items(value, "outputs")
    if len(inputs) != len(outputs):
        raise ValueError(
            f"the ground truth has {len(inputs)} inputs and {len(outputs)} outputs: each test "
            "needs one of both"
        )
    function = value.get("fn_name")
    if function is None:
        return PrintedTests(_texts(inputs, "inputs"), _texts(outputs, "outputs"))
    if not isinstance(function, str) or not all(map(str.isidentifier, function.split("."))):
        raise ValueError(f"fn_name is {shown(function)}: give the name of a function")
    arguments = tuple(map(_from_json, inputs))
    for number, each in enumerate(arguments):
        if not isinstance(each, (list, tuple)):
            raise ValueError(
                f"test {number} has the arguments {shown(each)}: give a list of them, as JSON"
            )
    return CalledTests(function, arguments, tuple(map(_from_json, outputs)))


def _exam(value: Mapping[str, Any]) -> Exam:
    asserts = _from_json(value["asserts"])
    tests = [asserts] if isinstance(asserts, str) else _items(value, "asserts")
    setup, entry = value.get("setup") or "", value.get("entry_point")
    if isinstance(setup, (list, tuple)):
        setup = "\n".join(_texts(setup, "setup"))
    if entry is not None and (not isinstance(entry, str) or not entry.isidentifier()):
        raise ValueError(f"entry_point is {shown(entry)}: give the name of a function")
    if entry is not None and _defines_check(tests):
        # HumanEval's form: a function that is given what it tests.
        setup, tests = "\n".join([setup, *map(str, tests)]), [f"check({entry})"]
    for number, code in enumerate(_texts([setup, *tests], "asserts")):
        try:
            ast.parse(code)
        except SyntaxError as error:
            which = f"test {number - 1}" if number else "setup"
            raise ValueError(f"{which} is no Python ({error.msg}): {shown(code)}") from None
    found = tested_names("\n".join([setup, *tests])) if entry is None else [entry]
    if not found:
        raise ValueError(
            f"the tests call nothing of the program, the first is {shown(tests[0])}: name what "
            "they call in entry_point"
        )
    return Exam(tuple(tests), setup, tuple(found))


def _defines_check(tests: Sequence[Any]) -> bool:
    return any(isinstance(each, str) and "def check(" in each for each in tests)


def _items(value: Mapping[str, Any], name: str) -> list[Any]:
    items = _from_json(value[name])
    if not isinstance(items, (list, tuple)) or not items:
        raise ValueError(f"{name} is {shown(items)}: give a list of at least one")
    return list(items)


def _texts(items: Sequence[Any], name: str) -> tuple[str, ...]:
    for each in items:
        if not isinstance(each, str):
            raise ValueError(f"{name} holds {shown(each)}, which is no text")
    return tuple(items)


def _from_json(value: Any) -> Any:
    """The value itself, or of the JSON that it is: files with columns of one type hold that."""
    value = value.tolist() if hasattr(value, "tolist") else value
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except ValueError:
        return value
