"""Copies, questions of evaluations, pass rates and held-out questions."""

from __future__ import annotations

import pytest

from megatron_resrl.preparation.choice import Options, choose
from megatron_resrl.preparation.question import Question
from megatron_resrl.preparation.selection import (
    Row,
    is_held_out,
    with_pass_rates,
    without_duplicates,
    without_evaluation,
)

LONG = "A train leaves the station at noon and travels forty miles each hour until the evening"
TEXTS = [
    ("What is 2 + 3?", "5"),
    ("What is 2 + 3?", "5"),
    ("what is 2+3", "5"),
    ("What is 2 - 3?", "-1"),
    (f"{LONG}. How far?", "240"),
    (f"{LONG}. How far is that?", "240"),
]


def rows(texts: list[tuple[str, str]] = TEXTS) -> list[Row]:
    return [
        Row(number, Question(text, answer, text, "set"))
        for number, (text, answer) in enumerate(texts)
    ]


@pytest.mark.parametrize(
    ("level", "left"),
    [
        ("none", [0, 1, 2, 3, 4, 5]),
        ("identical", [0, 2, 3, 4, 5]),
        ("normalised", [0, 3, 4, 5]),
        ("near", [0, 3, 4]),
    ],
)
def test_without_duplicates_removes_up_to_its_level(level, left) -> None:
    unique = without_duplicates(rows(), level, near=0.8)
    assert [row.number for row in unique.rows] == left
    assert [each.row for each in unique.found if each.removed] == sorted({*range(6)} - {*left})
    # All are reported, whatever is removed.
    kinds = {each.row: (each.kind, each.of) for each in unique.found}
    assert kinds == {
        1: ("identical", "row 0"),
        2: ("normalised", "row 0"),
        3: ("other_answer", "row 0"),
        5: ("near", "row 4"),
    }


def test_without_evaluation_removes_copies_and_near_ones() -> None:
    asked = [("aime, row 7", "WHAT IS 2+3"), ("aime, row 9", f"{LONG}, how far?")]
    left, found = without_evaluation(rows(), asked, near=0.8)
    assert left == []
    assert [(each.row, each.kind, each.of) for each in found[3:]] == [
        (3, "normalised", "aime, row 7"),  # Whatever its answer: the letters are the same.
        (4, "normalised", "aime, row 9"),
        (5, "near", "aime, row 9"),
    ]
    assert without_evaluation(rows(), [], near=0.8) == (rows(), [])


def test_with_pass_rates_keeps_what_is_between() -> None:
    rates = dict(zip(range(6), [0.0, 0.1, 0.5, 0.9, 1.0, None], strict=True))
    given = rows()
    by_question = {id(row.question): rates[row.number] for row in given}
    left, removed = with_pass_rates(given, lambda asked: by_question[id(asked)], 0.1, 0.9)
    assert [(row.number, rate) for row, rate in left] == [(1, 0.1), (2, 0.5), (3, 0.9)]
    assert removed == {"too_hard": 1, "too_easy": 1, "unknown": 1}


def test_is_held_out_takes_its_share_by_the_text_alone() -> None:
    texts = [f"Question number {number}" for number in range(4000)]
    share = sum(is_held_out(text, 0.2) for text in texts) / len(texts)
    # Four standard deviations of a binomial share: 4 sqrt(0.2 * 0.8 / 4000).
    assert share == pytest.approx(0.2, abs=0.0253)
    assert all(is_held_out(text, 0.2) == is_held_out(f" {text.upper()}!", 0.2) for text in texts)
    more = [is_held_out(text, 0.5) for text in texts if is_held_out(text, 0.2)]
    assert all(more)  # A larger share holds the smaller one.


def test_choose_holds_near_questions_out_together() -> None:
    """Whichever part the first is in, the near one is in it, too."""
    options = Options(
        duplicates="none", near=0.7, against=[], pass_rates=[], keep_between=None, held_out=0.5
    )
    parts = set()
    for number in range(20):
        texts = [(f"{number} {LONG}. How far?", "1"), (f"{number} {LONG}. How far is that?", "2")]
        chosen = choose(rows(texts), options, [], None)
        assert sorted(map(len, (chosen.train, chosen.held_out))) == [0, 2]
        parts.add(len(chosen.held_out))
    assert parts == {0, 2}
