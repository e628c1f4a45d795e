"""What becomes of the rows of a set: removed, kept for training, or held out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from megatron_resrl.errors import InputError
from megatron_resrl.preparation.question import Question
from megatron_resrl.preparation.selection import (
    KINDS,
    Duplicates,
    Found,
    Row,
    is_held_out,
    with_pass_rates,
    without_duplicates,
    without_evaluation,
)

PASS_RATE = "pass_rate"
"""Column with the share of a model's responses that were correct."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """As `prepare.prepare_data` has them."""

    duplicates: Duplicates
    near: float
    against: list[str]
    pass_rates: list[str]
    keep_between: list[float] | None
    held_out: float

    def check(self) -> None:
        """Refuses what cannot be.

        Raises:
            InputError: A number is out of range, or an option lacks the one that it needs.
        """
        if not 0 < self.near <= 1:
            raise InputError(f"--near = {self.near}: give a share above 0, at most 1")
        if not 0 <= self.held_out < 1:
            raise InputError(f"--held_out = {self.held_out}: give a share from 0 on, below 1")
        if self.keep_between is None:
            return
        if len(self.keep_between) != 2 or not 0 <= self.low <= self.high <= 1:
            raise InputError(
                f"--keep_between = {self.keep_between}: give two shares, the smaller first"
            )
        if not self.pass_rates:
            raise InputError(
                "--keep_between needs --pass_rates, the responses that an evaluation kept"
            )

    @property
    def low(self) -> float:
        """Smallest pass rate of a question that is kept."""
        return 0.1 if self.keep_between is None else self.keep_between[0]

    @property
    def high(self) -> float:
        """Largest pass rate of a question that is kept."""
        return 0.9 if self.keep_between is None else self.keep_between[1]


@dataclass(frozen=True)
class Chosen:
    """The rows of the files that are written, and what became of the others."""

    train: list[dict[str, Any]]
    held_out: list[dict[str, Any]]
    report: dict[str, Any]
    """Counts for the card."""
    found: list[Found]
    """Copies, and questions of evaluations."""


def choose(
    rows: Sequence[Row],
    options: Options,
    evaluation: Sequence[tuple[str, str]],
    rates: Callable[[Question], float | None] | None,
) -> Chosen:
    """Chooses the questions of a set.

    Args:
        rows: In the order of the source.
        options: Which are removed, and which are held out.
        evaluation: Where each question of the evaluations is, and its text.
        rates: The pass rate of a question; None: all are kept.
    """
    unique = without_duplicates(rows, options.duplicates, options.near)
    left, overlapping = without_evaluation(unique.rows, evaluation, options.near)
    report: dict[str, Any] = {
        "duplicates": _counts(unique.found),
        "in_evaluations": len(overlapping),
    }
    table = [(row, columns(row.question)) for row in left]
    if rates is not None:
        rated, removed = with_pass_rates(left, rates, options.low, options.high)
        report["pass_rates"] = removed
        table = [(row, columns(row.question) | {PASS_RATE: rate}) for row, rate in rated]
    about = {row.number: row.question.about for row in unique.rows}
    train: list[dict[str, Any]] = []
    held_out: list[dict[str, Any]] = []
    for row, its_columns in table:
        # Near questions stay together: a held-out one must not be like one that is trained on.
        first = about[unique.family[row.number]]
        part = held_out if is_held_out(first, options.held_out) else train
        part.append(its_columns)
    report |= {"rows_written": len(train), "held_out": len(held_out)}
    return Chosen(train, held_out, report, [*unique.found, *overlapping])


def columns(question: Question) -> dict[str, Any]:
    """A row of a question file."""
    return {
        "prompt": question.prompt,
        "answer": question.answer,
        "data_source": question.data_source,
        "question": question.about,
        **question.columns,
    }


def _counts(found: Sequence[Found]) -> dict[str, dict[str, int]]:
    """Copies of each kind: how many there are, and how many were removed."""
    total = Counter(each.kind for each in found)
    removed = Counter(each.kind for each in found if each.removed)
    return {kind: {"found": total[kind], "removed": removed[kind]} for kind in KINDS}
