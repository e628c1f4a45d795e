"""Integer answers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from questions import load_prompts

from megatron_resrl.rewards.integer import integer_reward

words = st.text(
    st.characters(exclude_categories=["N"], exclude_characters="-.,/_eE\N{MINUS SIGN}"), max_size=20
)


@pytest.mark.parametrize(
    ("response", "ground_truth"),
    [
        ("42", 42),
        ("The answer is 42.", "42"),
        ("6 x 7 = 42", 42),
        ("= -5", -5),
        ("= \N{MINUS SIGN}5", "-5"),
        ("(-5)", "-5"),
        ("10-5", 5),
        ("x-5", 5),
        ("- 5", 5),
        ("1,234,567 apples", 1234567),
        ("$1,234$", "1,234"),
        ("0042", 42),
        ("-0", 0),
        ("42", "42.0"),
        ("42", 42.0),
        ("choose 1, 2", 2),
        ("12,3456", 3456),
        (r"\boxed{42}", " 42 "),
        ("**42**", "+42"),
        ("42km", 42),
        ("答案是42", 42),
        ("9" * 6000, "9" * 6000),
        ("3.5 is not it, 4 is", 4),
        ("42 in x2", 42),
    ],
)
def test_integer_reward_takes_the_last_integer(response: str, ground_truth: Any) -> None:
    assert integer_reward(response, ground_truth) == 1.0


@pytest.mark.parametrize(
    ("response", "ground_truth"),
    [
        ("", 42),
        ("forty-two", 42),
        ("42 or 43", 42),
        ("-42", 42),
        ("42", -42),
        ("42.0", 42),
        ("3.42", 42),
        (".42", 42),
        ("1/42", 42),
        ("84/2", 2),
        ("1e42", 42),
        ("x42", 42),
        ("1,234", 234),
        ("1,234", 1),
        ("420", 42),
    ],
)
def test_integer_reward_rejects_any_other_number(response: str, ground_truth: Any) -> None:
    assert integer_reward(response, ground_truth) == 0.0


@given(words, st.integers(), st.sampled_from(["{}", "{:,}"]), words)
def test_integer_reward_tells_an_integer_from_its_neighbours(
    before: str, number: int, style: str, after: str
) -> None:
    response = f"{before} {style.format(number)} {after}"
    assert integer_reward(response, number) == 1.0
    assert integer_reward(response, str(number)) == 1.0
    assert integer_reward(response, number + 1) == 0.0


@given(st.text(max_size=60), st.integers())
def test_integer_reward_scores_any_response(response: str, number: int) -> None:
    assert integer_reward(response, number) in (0.0, 1.0)


@pytest.mark.parametrize(
    "ground_truth", ["forty-two", "", "2.5", "#### 42", "4 2", "1,23", None, True, {}, 0.5, 1e400]
)
def test_integer_reward_names_ground_truths_that_are_none(ground_truth: Any) -> None:
    with pytest.raises(ValueError, match=r"not an integer.*data\.answer_key.*data\.answer_pattern"):
        integer_reward("42", ground_truth)


def test_integer_reward_accepts_the_answers_of_gsm8k(reference: Path) -> None:
    file = reference / "questions" / "gsm8k_test.parquet"
    records = load_prompts(file, prompt_key="question", answer_pattern="#### (.+)")
    assert len(records) == 40
    for record in records:
        solution = record.extra["answer"]
        assert integer_reward(solution, record.ground_truth) == 1.0
