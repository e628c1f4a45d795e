"""Checks of the options that a recipe gives an algorithm."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from megatron_resrl.config.ranges import Range


def require_not_negative(option: str, value: Any) -> None:
    """Raises ValueError unless the value is a finite number of at least 0."""
    _require_number(option, value, "of at least 0", lambda number: 0 <= number < math.inf)


def require_above(option: str, value: Any, low: float) -> None:
    """Raises ValueError unless the value is a finite number above `low`."""
    _require_number(option, value, f"above {low}", lambda number: low < number < math.inf)


def require_between(option: str, value: Any, low: float, high: float) -> None:
    """Raises ValueError unless the value is a number above `low` and at most `high`."""
    _require_number(
        option, value, f"above {low} and at most {high}", lambda number: low < number <= high
    )


def require_within(option: str, value: Any, allowed: Range) -> None:
    """Raises ValueError unless the value is a number in the range of a setting."""
    _require_number(option, value, str(allowed), allowed.holds)


def require_bool(option: str, value: Any) -> None:
    """Raises ValueError unless the value is a truth value."""
    if not isinstance(value, bool):
        raise _wrong(option, value, "not a truth value; use true or false")


def require_choice(option: str, value: Any, choices: Sequence[str]) -> None:
    """Raises ValueError unless the value is one of the choices."""
    if value not in choices:
        raise _wrong(option, value, f"unknown; use one of {', '.join(choices)}")


def _require_number(option: str, value: Any, words: str, holds: Callable[[float], bool]) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise _wrong(option, value, f"not a number; use one {words}")
    if not holds(value):
        raise _wrong(option, value, f"out of range; use a finite number {words}")


def _wrong(option: str, value: Any, problem: str) -> ValueError:
    return ValueError(f"algorithm.options.{option} = {value!r}: {problem}")
