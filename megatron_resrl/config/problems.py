"""What can be wrong with a recipe, and how it is said."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from megatron_resrl.errors import InputError, SettingError

Kind = Literal["recipe", "machine", "note"]
"""`recipe`: wrong on every machine; `machine`: this machine lacks something (a device, a package, a
file); `note`: allowed, and probably not meant."""


@dataclass(frozen=True)
class Problem:
    """One thing that a check has found."""

    setting: str
    """Dotted name, e.g. `parallel.tensor_model_parallel_size`."""
    value: Any
    """The value found."""
    problem: str
    """Why that value cannot be used."""
    fix: str
    """What would be right."""
    kind: Kind = "recipe"
    """Whom it concerns."""

    @classmethod
    def of(cls, error: SettingError) -> Problem:
        """What an error says of a setting."""
        return cls(error.setting, error.value, error.problem, error.fix)

    @property
    def reason(self) -> str:
        """The value and what is wrong with it, without what would be right."""
        return f"{self.setting} is {self.value!r}, and {self.problem}"

    def __str__(self) -> str:
        return f"{self.setting} = {self.value!r}: {self.problem}; {self.fix}"


def first_problem(*candidates: tuple[bool, Problem]) -> Problem | None:
    """The problem of the first candidate that applies; None: none does."""
    return next((problem for applies, problem in candidates if applies), None)


def against_always(setting: str, asked: str, conflict: Problem | None) -> Iterator[Problem]:
    """What keeps a setting from being `always`, as it is asked to be.

    Args:
        setting: Dotted name.
        asked: Its value.
        conflict: The setting in its way; None: none.
    """
    if asked == "always" and conflict is not None:
        problem = f"{setting} is always, but {conflict.problem}"
        yield replace(conflict, problem=problem, fix=f"{conflict.fix}, or set {setting}: auto")


class RecipeError(InputError):
    """A recipe that cannot be run; the message lists every problem found.

    Args:
        problems: At least one; no notes.
    """

    def __init__(self, problems: Sequence[Problem]) -> None:
        self.problems = tuple(problems)
        wrong = [problem for problem in problems if problem.kind == "recipe"]
        missing = [problem for problem in problems if problem.kind == "machine"]
        lines: list[str] = []
        if wrong:
            lines += listed(f"{_count(wrong, 'problem')} in the recipe:", wrong)
        if missing:
            lines += listed(f"{_count(missing, 'thing')} missing on this machine:", missing)
        super().__init__("\n".join(lines))

    def __reduce__(self) -> tuple[type[RecipeError], tuple[Any, ...]]:
        return RecipeError, (self.problems,)


def listed(heading: str, problems: Sequence[Problem]) -> list[str]:
    """Lines: the heading, and an item for each problem."""
    return [heading, *(f"  - {problem}" for problem in problems)]


def _count(problems: Sequence[Problem], word: str) -> str:
    return f"{len(problems)} {word}{'s' if len(problems) > 1 else ''}"
