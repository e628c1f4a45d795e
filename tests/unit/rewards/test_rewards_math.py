"""Mathematical equality, judged by the real math-verify."""

# ruff: noqa: RUF001 - letters that look alike are told apart here
from __future__ import annotations

import logging
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy
import pytest
from questions import load_prompts

from megatron_resrl.rewards.math import check_ground_truth, math_reward


@pytest.mark.parametrize(
    ("response", "ground_truth"),
    [
        (r"So the answer is $\boxed{34}$.", "34"),
        ("The answer is 34.", 34),
        (r"\boxed{27}", "27.0"),
        (r"therefore $x = -3$", "-3"),
        (r"\boxed{-\frac{3}{4}}", "-0.75"),
        ("We get 0.5", r"\frac{1}{2}"),
        (r"$\frac{12}{2}$", 6),
        (r"\boxed{1,000}", "1000"),
        (r"\boxed{1+x}", "x+1"),
        (r"\boxed{(3, \pi/2)}", r"\left( 3, \frac{\pi}{2} \right)"),
        (r"\boxed{\text{Evelyn}}", r"\text{Evelyn}"),
        (r"\boxed{2\sqrt{3}}", r"\sqrt{12}"),
        (r"\boxed{3.5}", 3.5),
        (r"First 12, then 15, so \boxed{18}", r"the answer is $\boxed{18}$"),
    ],
)
def test_math_reward_accepts_equal_answers_in_any_notation(
    response: str, ground_truth: Any
) -> None:
    assert math_reward(response, ground_truth) == 1.0


@pytest.mark.parametrize(
    ("response", "ground_truth"),
    [
        (r"\boxed{35}", "34"),
        (r"\boxed{3}", "-3"),
        (r"\boxed{\frac{2}{1}}", r"\frac{1}{2}"),
        ("I think 42, or maybe 43", "42"),
        (r"34 is what I found first, but \boxed{35}", "34"),
        ("no number at all", "34"),
        ("", "34"),
        (r"\boxed{", "34"),
        (r"\boxed{}", "0"),
        (r"\frac{" * 500, "34"),
        ("9" * 6000, "34"),
        ("\x00\ud800", "34"),
    ],
)
def test_math_reward_rejects_other_answers_and_garbage(response: str, ground_truth: Any) -> None:
    assert math_reward(response, ground_truth) == 0.0


@pytest.mark.parametrize(
    ("ground_truth", "said"),
    [
        ({"question": "?", "target": "3"}, r"has fields \(question, target\).*data.answer_key"),
        ("He has 2 * 21 apples.\n#### 42", "#### 42'.*data.answer_pattern"),
        ("", "holds nothing that math-verify can read"),
        (None, "is None: give a number or text"),
        (True, "is True: give a number or text"),
        (float("nan"), "is nan, a missing value"),
        (Decimal("NaN"), "a missing value"),
        ("nan", "is 'nan', a missing value"),
        (numpy.float64("inf"), "is inf, a missing value"),
        (b"3", "give a number or text"),
        ([], "an empty list"),
        (["3", None], "is None: give a number or text"),
        (r"\boxed{}", "holds nothing that math-verify can read"),
        (" ", "holds nothing that math-verify can read"),
        ("+-/", "holds nothing that math-verify can read"),
        ('["assert f(1) == 2", "assert f(2) == 3"]', "is JSON.*data.answer_key"),
        ('[{"area": {"base": [10], "height": [5]}}]', "is JSON"),
        ('{"name": "area"}', "is JSON"),
        ("assert f([1, 2]) == 3", "is code"),
        ("R = 3\ndef f(cost):\n    return R * cost", "is code"),
        ("He sold 48/2 = 24 clips in May, and 72 altogether", "is a sentence.*data.answer_pattern"),
        ("def f(x):\n    return x", "is code"),
        ('<tool_call>\n{"name": "area"}\n</tool_call>', "a whole response"),
    ],
)
def test_math_check_names_ground_truths_that_are_no_answer(ground_truth: Any, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        math_reward("3", ground_truth)
    with pytest.raises(ValueError, match=said):
        check_ground_truth(ground_truth)


def test_math_reward_silences_the_warning_of_math_verify(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("parser", "grader"):
        monkeypatch.setattr(f"math_verify.{module}.TIMEOUT_WARNING_SHOWN", False)
    with caplog.at_level(logging.WARNING):
        assert math_reward("5", "5") == 1.0
    assert not caplog.records


@pytest.mark.parametrize(
    ("file", "keys"),
    [
        ("math500", {"prompt_key": "problem"}),
        ("amc23", {"prompt_key": "problem"}),
        ("aime24", {"prompt_key": "problem"}),
        ("aime25", {"answer_key": "reward_model.ground_truth.target"}),
        ("math_train", {"answer_key": "reward_model.ground_truth.target"}),
        ("dapo_math_17k", {}),
        ("gsm8k_test", {"prompt_key": "question", "answer_pattern": "#### (.+)"}),
    ],
)
def test_math_reward_accepts_real_ground_truths_as_answers(
    reference: Path, file: str, keys: dict[str, str]
) -> None:
    records = load_prompts(reference / "questions" / f"{file}.parquet", **keys)
    wrong = [
        record.ground_truth
        for record in records
        if math_reward(rf"so it is $\boxed{{{record.ground_truth}}}$.", record.ground_truth) != 1.0
    ]
    assert wrong == []


@pytest.mark.parametrize(
    ("ground_truth", "answers"),
    [
        (1e-05, ("0.00001", "10^{-5}", r"1 \times 10^{-5}", "1e-5", r"\frac{1}{100000}")),
        (2.5e-05, ("0.000025", r"2.5 \cdot 10^{-5}")),
        (1e16, ("10^{16}", "10000000000000000", "10,000,000,000,000,000")),
        (6.02e23, (r"6.02 \times 10^{23}", "6.02×10²³", "6.02e23")),
        ("1.5e3", ("1500", "1,500")),
        ("1E-7", ("0.0000001", "10^{-7}")),
        (0.1 + 0.2, ("0.3", r"\frac{3}{10}")),
        ("The answer is 7.", ("7", "7.0")),
        (r"We add 3 and 4 to find that it is $\boxed{7}$.", ("7",)),
        (-0.5, ("-1/2", "−½")),
        (numpy.float32(0.25), ("0.25",)),
        (numpy.int64(7), ("7", "7.0")),
        (Decimal("1E+3"), ("1000",)),
        (Fraction(1, 3), ("1/3", "0.333333", r"0.\overline{3}")),
        (["4", 5.0], ("4", "5")),
        (("x+1", "1-x"), ("1+x", "-x+1")),
        (numpy.array([0.5, 3.0]), ("0.5", "3")),
    ],
)
def test_math_check_accepts_numbers_and_lists_of_answers(
    ground_truth: Any, answers: tuple[str, ...]
) -> None:
    check_ground_truth(ground_truth)
    scores = {answer: math_reward(rf"\boxed{{{answer}}}", ground_truth) for answer in answers}
    assert scores == dict.fromkeys(answers, 1.0)
    assert math_reward(r"\boxed{6}", ground_truth) == 0.0


@pytest.mark.parametrize(
    ("file", "keys", "answer"),
    [
        ("gsm8k_train", {"prompt_key": "question"}, "#### (.+)"),
        ("gsm8k_test", {"prompt_key": "question"}, "#### (.+)"),
        ("math500", {"prompt_key": "problem", "answer_key": "solution"}, None),
        ("aime24", {"prompt_key": "problem", "answer_key": "solution"}, None),
    ],
)
def test_math_reward_fits_published_solutions_to_their_questions(
    reference: Path, file: str, keys: dict[str, str], answer: str | None
) -> None:
    path = reference / "questions" / f"{file}.parquet"
    solutions = [record.ground_truth for record in load_prompts(path, **keys)]
    answers = [
        record.ground_truth
        for record in load_prompts(path, **(keys | {"answer_key": "answer"}), answer_pattern=answer)
    ]
    assert len(solutions) == len(answers) >= 10
    pairs = zip(solutions, answers, strict=True)
    assert [truth for solution, truth in pairs if math_reward(solution, truth) != 1.0] == []
    others = [*answers[1:], answers[0]]
    taken = [
        (mine, other)
        for solution, mine, other in zip(solutions, answers, others, strict=True)
        if mine != other and math_reward(solution, other) != 0.0
    ]
    assert taken == []
