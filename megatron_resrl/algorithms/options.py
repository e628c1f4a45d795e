"""Checks of the options a recipe gives an algorithm."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any


def require_not_negative(option: str, value: Any) -> None:
    """Raises ValueError unless the value is a finite number of at least 0."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise _wrong(option, value, "not a number; use one of at least 0")
    if not 0 <= value < math.inf:
        raise _wrong(option, value, "out of range; use a finite number of at least 0")


def require_bool(option: str, value: Any) -> None:
    """Raises ValueError unless the value is a truth value."""
    if not isinstance(value, bool):
        raise _wrong(option, value, "not a truth value; use true or false")


def require_choice(option: str, value: Any, choices: Sequence[str]) -> None:
    """Raises ValueError unless the value is one of the choices."""
    if value not in choices:
        raise _wrong(option, value, f"unknown; use one of {', '.join(choices)}")


def _wrong(option: str, value: Any, problem: str) -> ValueError:
    return ValueError(f"algorithm.options.{option} = {value!r}: {problem}")
