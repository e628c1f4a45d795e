"""Forms of answers and of whole responses."""

from __future__ import annotations

from typing import Any

import pytest

from megatron_resrl.errors import InputError
from megatron_resrl.rewards.length import length_reward
from megatron_resrl.rewards.math import math_reward
from megatron_resrl.rewards.multiple_choice import check_ground_truth, multiple_choice_reward
from megatron_resrl.rewards.registry import load_reward
from megatron_resrl.rewards.response_format import format_reward

BOXED_7 = r"It is \boxed{7}."
LINE_7 = "So there are 7.\nAnswer: $7$"
HASHES_7 = "3 + 4 = 7\n#### 7"


@pytest.mark.parametrize(
    ("form", "right", "wrong"),
    [
        ("boxed", [BOXED_7, r"\boxed{6} no, \boxed{7}"], ["7", LINE_7, HASHES_7, r"\boxed{7"]),
        (
            "last_number",
            ["7", BOXED_7, LINE_7, HASHES_7, r"\boxed{6} or 7", "$x = 7$ apples"],
            ["seven", r"\boxed{7} in 2 steps"],
        ),
        (
            "answer_line",
            [
                LINE_7,
                "**Answer:** 7.",
                r"Answer: \boxed{7}",
                "answer : 7\n",
                "Answer: 6\nAnswer: 7",
            ],
            ["7", BOXED_7, HASHES_7, "Answer:\n7", "Answer: 7\nAnswer: 6", "Answer: 7 or 8"],
        ),
        ("hashes", [HASHES_7, "#### 7\n", "#### 6\n#### 7"], ["7", BOXED_7, LINE_7, "# 7"]),
        ("auto", ["7", BOXED_7, LINE_7, HASHES_7], ["8"]),
    ],
)
def test_math_takes_the_answer_in_the_form_asked_for(
    form: Any, right: list[str], wrong: list[str]
) -> None:
    assert [math_reward(response, "7", answer=form) for response in right] == [1.0] * len(right)
    assert [math_reward(response, "7", answer=form) for response in wrong] == [0.0] * len(wrong)


@pytest.mark.parametrize(
    "response",
    [
        r"\boxed{C}",
        r"\boxed{\text{(C)}}",
        r"A is wrong. \boxed{C. 12 km}",
        "The answer is (C).",
        "The correct answer is C) 12 km",
        "Answer: C",
        "**Answer: C**",
        "the answer is option C, because A is a dog",
        "Not (A) but (C)",
        "I take **C**",
        "Let me see.\nC",
        "c is the speed of light.\nAnswer: c",
    ],
)
def test_multiple_choice_finds_the_letter(response: str) -> None:
    assert multiple_choice_reward(response, "C") == 1.0
    assert multiple_choice_reward(response, ["b", "(c)"]) == 1.0
    assert multiple_choice_reward(response, "A") == 0.0


@pytest.mark.parametrize(
    "response",
    ["", "C is what A calls it", r"(C) \boxed{12}", r"(C) and \boxed{C", "The answer is 12. (C)"],
)
def test_multiple_choice_needs_a_letter_as_the_answer(response: str) -> None:
    assert multiple_choice_reward(response, "C") == 0.0


@pytest.mark.parametrize("value", ["12", "AB", "", None, 3, {"a": "C"}, []])
def test_multiple_choice_refuses_what_is_no_letter(value: Any) -> None:
    with pytest.raises(ValueError, match=r"ground truth"):
        check_ground_truth(value)


THOUGHTS = "<think>\nhm\n</think>\n"


@pytest.mark.parametrize(
    ("options", "right", "wrong"),
    [
        (
            {},
            [THOUGHTS + "<answer>7</answer>", " <think>a</think><answer>b\nc</answer>\n"],
            [
                "",
                "<answer>7</answer>",
                THOUGHTS + "7",
                THOUGHTS + "<answer></answer>",
                THOUGHTS + "<answer>7</answer> I hope it helps",
                THOUGHTS + "so <answer>7</answer>",
                THOUGHTS + "<answer>7</answer><answer>8</answer>",
                "<answer>7</answer><think>a</think>",
                "<think>a<answer>7</answer></think>",
            ],
        ),
        (
            {"form": "think"},
            [THOUGHTS + "7", "<think></think>7"],
            ["7", THOUGHTS, "hm </think> 7", "a" + THOUGHTS + "7", THOUGHTS + THOUGHTS + "7"],
        ),
        ({"form": "think", "opened": True}, ["hm </think> 7"], [THOUGHTS + "7", "hm </think>"]),
        ({"form": "boxed"}, [BOXED_7], ["7", r"\boxed{7", r"\boxed{}"]),
        (
            {"form": "json"},
            ['{"a": [1]}', 'Here:\n```json\n{"a": 1}\n```', " 7 "],
            ["{a: 1}", "", "[" * 100_000, "```\nno\n```"],
        ),
        ({"pattern": r"Q: .+\nA: \d+"}, ["Q: a\nb\nA: 7"], ["Q: a A: 7", "Q: a\nA: 7 "]),
    ],
)
def test_format_accepts_its_form_and_nothing_else(
    options: dict[str, Any], right: list[str], wrong: list[str]
) -> None:
    assert [format_reward(response, None, **options) for response in right] == [1.0] * len(right)
    assert [format_reward(response, None, **options) for response in wrong] == [0.0] * len(wrong)


@pytest.mark.parametrize(
    ("options", "tokens", "expected"),
    [
        ({"longest": 100, "tolerance": 50}, 0, 1.0),
        ({"longest": 100, "tolerance": 50}, 100, 1.0),
        ({"longest": 100, "tolerance": 50}, 110, 0.8),
        ({"longest": 100, "tolerance": 50}, 150, 0.0),
        ({"longest": 100, "tolerance": 50}, 999, 0.0),
        ({"shortest": 100, "tolerance": 50}, 75, 0.5),
        ({"shortest": 100, "tolerance": 50}, 999, 1.0),
        ({"shortest": 100, "longest": 100, "tolerance": 4}, 101, 0.75),
        ({"longest": 100}, 101, 0.0),
    ],
)
def test_length_falls_linearly_beyond_its_bounds(
    options: dict[str, Any], tokens: int, expected: float
) -> None:
    score = length_reward("", None, response_tokens=tokens, **options)
    assert score == pytest.approx(expected, rel=1e-12)  # One rounding of a quotient.


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("math", {"answer": "box"}, "answer is 'box', which is of another type; give one of auto"),
        ("math", {"answers": "boxed"}, "no option 'answers'; did you mean answer?"),
        ("integer", {"answer": "boxed"}, "no option 'answer'; its own are none"),
        ("code", {"partial_credit": 1}, "partial_credit is 1, .*; give true or false"),
        ("length", {"longest": 1.5}, "longest is 1.5, .*; give an integer or null"),
        ("length", {"longest": -1}, "longest is -1, out of range; it must be at least 0"),
        ("length", {"longest": 9, "tolerance": 0}, "tolerance is 0, .* must be above 0"),
        ("length", {}, "every length is worth 1; give shortest or longest"),
        ("length", {"shortest": 9, "longest": 8}, "longest = 8 is below shortest = 9"),
        ("format", {"pattern": "(a"}, "pattern is no regular expression"),
        ("format", {"pattern": "a", "form": "think"}, "pattern stands in place of form"),
        ("countdown", {"use_all": "yes"}, "use_all is 'yes', .*; give true or false"),
    ],
)
def test_load_reward_refuses_values_of_options(
    name: str, options: dict[str, Any], said: str
) -> None:
    with pytest.raises(InputError, match=rf"^reward\.options = .*{said}"):
        load_reward(name, options)
