"""Whether what a program printed or returned is right."""

from __future__ import annotations

import math
from typing import Any

RELATIVE, ABSOLUTE = 1e-6, 1e-9
"""How far a number with a decimal point may be off."""


def same_output(printed: str, expected: str) -> bool:
    """Whether two texts have the same words in the same lines.

    Space at the end of lines, lines without anything else at the end of the text, and how words are
    set apart do not count. A number that is expected with a decimal point or exponent may be off by
    `RELATIVE` or `ABSOLUTE`.
    """
    first, second = _lines(printed), _lines(expected)
    return len(first) == len(second) and all(
        len(said) == len(right) and all(map(_same_word, said, right))
        for said, right in zip(first, second, strict=True)
    )


def same_value(result: Any, expected: Any) -> bool:
    """Whether a result is what JSON says that it should be.

    Tuples are lists, keys of objects are texts, and floats may be off by `RELATIVE` or `ABSOLUTE`;
    true and 1 are different.

    Args:
        result: Plain data.
        expected: As JSON has it.
    """
    if isinstance(expected, bool) or isinstance(result, bool):
        return result is expected
    if isinstance(expected, (int, float)) and isinstance(result, (int, float)):
        exact = isinstance(expected, int) and isinstance(result, int)
        return result == expected if exact else _close(result, expected)
    if isinstance(expected, (list, tuple)) and isinstance(result, (list, tuple)):
        return len(result) == len(expected) and all(map(same_value, result, expected))
    if isinstance(expected, dict) and isinstance(result, dict):
        known = {str(key): value for key, value in result.items()}
        return len(known) == len(result) == len(expected) and all(
            key in known and same_value(known[key], value) for key, value in expected.items()
        )
    return type(result) is type(expected) and bool(result == expected)


def _lines(text: str) -> list[list[str]]:
    return [line.split() for line in text.rstrip().split("\n")]


def _same_word(said: str, right: str) -> bool:
    if said == right:
        return True
    if not any(each in right for each in ".eE"):
        return False
    try:
        return _close(float(said), float(right))
    except ValueError:
        return False


def _close(result: float, expected: float) -> bool:
    try:
        return math.isclose(result, expected, rel_tol=RELATIVE, abs_tol=ABSOLUTE)
    except OverflowError:  # An integer beyond all floats.
        return False
