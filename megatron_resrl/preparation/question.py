"""A question on its way from a public file to one of ours."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from megatron_resrl.data.rows import ABSENT, columns, find, is_blank
from megatron_resrl.errors import InputError


@dataclass(frozen=True)
class Question:
    """A row of a prepared file."""

    prompt: str | list[dict[str, str]]
    """A text, or chat messages."""
    answer: str
    """The ground truth; what has parts is JSON."""
    about: str
    """The question without instructions and other text that many questions share: two questions
    with the same are one."""
    data_source: str
    columns: dict[str, Any] = field(default_factory=dict)
    """What else is kept of the row."""

    @property
    def asked(self) -> str:
        """The text of the last message."""
        return self.prompt if isinstance(self.prompt, str) else self.prompt[-1]["content"]


Format = Callable[[dict[str, Any], str, str], Question | None]
"""Makes a question of a row, its place (for messages) and the dataset's name; None: the row has no
answer. Raises InputError if it has other columns than the dataset."""


def first_of(row: dict[str, Any], where: str, *keys: str) -> tuple[str, Any]:
    """The first key (`a.b` is field b of column a) that a row has, and its value.

    Raises:
        InputError: The row has none of these keys.
    """
    for key in keys:
        if (value := find(row, key)) is not ABSENT:
            return key, value
    raise InputError(
        f"{where}: it has the columns {columns(row)}, and none of {', '.join(keys)}; give the "
        "dataset's own file, or name the dataset that it is of"
    )


def required(row: dict[str, Any], where: str, *keys: str) -> Any:
    """The value of `first_of`.

    Raises:
        InputError: The row has none of these keys, or nothing in them.
    """
    key, value = first_of(row, where, *keys)
    if is_blank(value):
        raise InputError(f"{where}: {key} is empty; repair the row, or leave it out")
    return value


def kept(row: dict[str, Any], *names: str) -> dict[str, str]:
    """Columns that a row has, as texts."""
    return {name: str(row[name]) for name in names if not is_blank(row.get(name))}
