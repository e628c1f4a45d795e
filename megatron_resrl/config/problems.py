"""What can be wrong with a recipe, and how it is said."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Problem:
    """One thing wrong with a recipe."""

    setting: str
    """Dotted name, e.g. `parallel.tensor_model_parallel_size`."""
    value: Any
    """The value found."""
    problem: str
    """Why that value cannot be used."""
    fix: str
    """What would be right."""

    def __str__(self) -> str:
        return f"{self.setting} = {self.value!r}: {self.problem}; {self.fix}"


class InputError(ValueError):
    """Something the user gave cannot be used; the message explains it without a traceback.

    It names the setting or file, the value found and what would be right.
    """


class RecipeError(InputError):
    """A recipe that cannot be run; the message lists every problem found.

    Args:
        problems: At least one.
    """

    def __init__(self, problems: Sequence[Problem]) -> None:
        self.problems = tuple(problems)
        count = f"{len(problems)} problem{'s' if len(problems) > 1 else ''} in the recipe:"
        super().__init__("\n".join([count, *(f"  - {problem}" for problem in problems)]))


def closest(name: str, candidates: Collection[str], cutoff: float = 0.6) -> str | None:
    """The candidate that looks most like `name`, or None if none is similar enough."""
    found = difflib.get_close_matches(name, candidates, n=1, cutoff=cutoff)
    return found[0] if found else None
