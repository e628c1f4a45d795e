"""What can be wrong with a recipe, and how it is said."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from megatron_resrl.errors import InputError


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


class RecipeError(InputError):
    """A recipe that cannot be run; the message lists every problem found.

    Args:
        problems: At least one.
    """

    def __init__(self, problems: Sequence[Problem]) -> None:
        self.problems = tuple(problems)
        count = f"{len(problems)} problem{'s' if len(problems) > 1 else ''} in the recipe:"
        super().__init__("\n".join([count, *(f"  - {problem}" for problem in problems)]))
