"""The values that a number of a recipe may have, written beside its field in the schema.

lr: Annotated[float, above(0)] = 1e-6
"""

from __future__ import annotations

import math
import typing
from dataclasses import dataclass, replace
from typing import Any

LARGEST_INTEGER = 2**63
"""Integers must be smaller, to fit in 64 bits."""


@dataclass(frozen=True)
class Range:
    """Finite numbers between two bounds."""

    low: float
    high: float = math.inf
    low_included: bool = True
    high_included: bool = True
    or_null: bool = False
    """The setting may be null instead."""

    def holds(self, value: Any) -> bool:
        """Whether a number lies in the range; not-a-number and infinity lie in none."""
        above = self.low <= value if self.low_included else self.low < value
        below = value <= self.high if self.high_included else value < self.high
        return above and below and math.isfinite(value)

    def __str__(self) -> str:
        if self.low_included and self.high_included and self.high < math.inf:
            words = f"between {self.low} and {self.high}"
        else:
            words = f"{'at least' if self.low_included else 'above'} {self.low}"
            if self.high < math.inf:
                words += f" and {'at most' if self.high_included else 'below'} {self.high}"
        return f"{words}, or null" if self.or_null else words


@dataclass(frozen=True)
class RisingPair(Range):
    """Two finite numbers between two bounds, the first below the second."""

    def holds(self, value: Any) -> bool:
        """Whether a pair rises inside the range."""
        first, second = value
        return first < second and super().holds(first) and super().holds(second)

    def __str__(self) -> str:
        return f"two increasing numbers {super().__str__()}"


def at_least(low: float) -> Range:
    """From `low` on."""
    return Range(low)


def above(low: float) -> Range:
    """Larger than `low`."""
    return Range(low, low_included=False)


def between(low: float, high: float) -> Range:
    """From `low` to `high`, both included."""
    return Range(low, high)


PROBABILITY = between(0, 1)
POSITIVE_SHARE = Range(0, 1, low_included=False)
BELOW_ONE = Range(0, 1, high_included=False)


def field_ranges(section: type) -> dict[str, Range]:
    """Field -> range, of a dataclass whose numbers are annotated with one."""
    hints = typing.get_type_hints(section, include_extras=True)
    return {
        name: replace(extra, or_null=type(None) in typing.get_args(hint.__origin__))
        for name, hint in hints.items()
        for extra in getattr(hint, "__metadata__", ())
        if isinstance(extra, Range)
    }


def range_problem(value: Any, allowed: Range) -> tuple[str, str] | None:
    """Why a number cannot be used, and what would be right; None: it can, or it is not set."""
    if isinstance(value, int) and abs(value) >= LARGEST_INTEGER:
        return "it does not fit in 64 bits", "use a number below 2^63"
    if value is not None and not allowed.holds(value):
        return "out of range", f"it must be {allowed}"
    return None


def require_in_range(name: str, value: Any, allowed: Range) -> None:
    """Raises ValueError, which names the argument, unless its value is in the range or None."""
    if found := range_problem(value, allowed):
        problem, fix = found
        raise ValueError(f"{name} is {value}: {problem}; {fix}")
