"""Which questions of a set are kept: once each, none of an evaluation, neither too easy nor too
hard; and which of them are held out."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from megatron_resrl.preparation.overlap import NearIndex, frequencies, grams, normalised
from megatron_resrl.preparation.question import Question

Duplicates = Literal["none", "identical", "normalised", "near"]
LEVELS: tuple[Duplicates, ...] = get_args(Duplicates)
"""What counts as a copy; each level includes those before it."""
Kind = Literal["identical", "normalised", "near", "other_answer"]
"""How two questions are alike: the same text; the same but for case, punctuation and space, with
the same answer or with another; most words in the same order."""
KINDS: tuple[Kind, ...] = get_args(Kind)


@dataclass(frozen=True)
class Found:
    """A question that is like another one."""

    row: int
    """In the source, from 0."""
    kind: Kind
    of: str
    """Where the other one is."""
    similarity: float
    """Jaccard index of the word grams; 1 for all kinds but `near`."""
    removed: bool


@dataclass(frozen=True)
class Row:
    """A question and where it is in the source."""

    number: int
    """From 0, over all files of the source."""
    question: Question


@dataclass(frozen=True)
class Unique:
    """What is left of a set when its copies are removed."""

    rows: list[Row]
    found: list[Found]
    """Copies, also those that were kept."""
    family: dict[int, int]
    """Number of each row that is left -> the number of the first that it is like."""


def without_duplicates(rows: Sequence[Row], level: Duplicates, near: float) -> Unique:
    """The first of each question.

    Questions with the same answer whose texts differ in punctuation alone are copies; with other
    answers they are not, because a minus sign may be what they differ in.

    Args:
        rows: In the order of the source.
        level: Which copies are removed; all are reported.
        near: Jaccard index from which on texts are near.
    """
    texts = {row.number: grams(row.question.about) for row in rows}
    index: NearIndex[int] = NearIndex(near, frequencies(texts.values()))
    same_text: dict[str, int] = {}
    same_letters: dict[str, dict[str, int]] = {}
    unique = Unique([], [], {})
    for row in rows:
        text, answer = row.question.about, row.question.answer
        answers = same_letters.setdefault(normalised(text), {})
        similarity = 1.0
        kind: Kind
        if text in same_text:
            kind, first = "identical", same_text[text]
        elif answer in answers:
            kind, first = "normalised", answers[answer]
        elif answers:
            kind, first = "other_answer", next(iter(answers.values()))
        elif nearest := index.nearest(texts[row.number]):
            kind, (first, similarity) = "near", nearest
        else:
            first = row.number
        if first != row.number:
            removed = kind in LEVELS and LEVELS.index(kind) <= LEVELS.index(level)
            unique.found.append(Found(row.number, kind, f"row {first}", similarity, removed))
            same_text.setdefault(text, first)
            if removed:
                continue
        unique.rows.append(row)
        unique.family[row.number] = unique.family.get(first, first)
        same_text.setdefault(text, row.number)
        answers.setdefault(answer, row.number)
        index.add(row.number, texts[row.number])
    return unique


def without_evaluation(
    rows: Sequence[Row], evaluation: Sequence[tuple[str, str]], near: float
) -> tuple[list[Row], list[Found]]:
    """Questions that no evaluation asks, whatever their answers.

    Args:
        rows: Of the set.
        evaluation: Where each question of the evaluations is, and its text.
        near: Jaccard index from which on texts are near.

    Returns:
        What is left, and what was removed.
    """
    known = [grams(text) for _, text in evaluation]
    texts = {row.number: grams(row.question.about) for row in rows}
    index: NearIndex[str] = NearIndex(near, frequencies([*known, *texts.values()]))
    exact: dict[str, str] = {}
    for (place, text), its_grams in zip(evaluation, known, strict=True):
        exact.setdefault(normalised(text), place)
        index.add(place, its_grams)
    left, found = [], []
    for row in rows:
        copied = exact.get(normalised(row.question.about))
        if copied is not None:
            found.append(Found(row.number, "normalised", copied, 1.0, removed=True))
        elif nearest := index.nearest(texts[row.number]):
            found.append(Found(row.number, "near", *nearest, removed=True))
        else:
            left.append(row)
    return left, found


def with_pass_rates(
    rows: Sequence[Row], rates: Callable[[Question], float | None], low: float, high: float
) -> tuple[list[tuple[Row, float]], dict[str, int]]:
    """Questions whose pass rate lies in [low, high].

    Args:
        rows: Of the set.
        rates: The pass rate of a question; None: it is not known.
        low: Smallest rate.
        high: Largest rate.

    Returns:
        The questions with their rates, and how many were removed as `too_hard`, `too_easy` and
        `unknown`.
    """
    left: list[tuple[Row, float]] = []
    removed = {"too_hard": 0, "too_easy": 0, "unknown": 0}
    for row in rows:
        rate = rates(row.question)
        if rate is None:
            removed["unknown"] += 1
        elif rate < low:
            removed["too_hard"] += 1
        elif rate > high:
            removed["too_easy"] += 1
        else:
            left.append((row, rate))
    return left, removed


def is_held_out(text: str, share: float) -> bool:
    """Whether a question is held out: by a hash of its letters and digits, so that it does not
    depend on the order, on the other questions, or on how the question is set.

    Args:
        text: Of the question.
        share: Of all questions.
    """
    digest = hashlib.sha256(normalised(text).encode()).digest()
    return int.from_bytes(digest[:8], "big") < share * 2**64
