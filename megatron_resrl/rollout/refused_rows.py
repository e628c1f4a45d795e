"""Questions' rows that a reward refuses; without torch, so that `check` starts at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from megatron_resrl.data.records import PromptRecord


def refused_rows(
    records: Sequence[PromptRecord], check: Callable[[Any], None] | None, attribute: str
) -> list[tuple[PromptRecord, Exception]]:
    """The records of which a check, if there is one, refuses an attribute, and why."""
    wrong: list[tuple[PromptRecord, Exception]] = []
    if check is None:
        return wrong
    for record in records:
        try:
            check(getattr(record, attribute))
        except Exception as error:  # A user's check may raise anything.
            wrong.append((record, error))
    return wrong
