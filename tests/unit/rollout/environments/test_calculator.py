"""The calculator computes arithmetic and nothing else, and says what it cannot."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron_resrl.rollout.environments.calculator import Calculator, calculate


def call(expression: object, name: str = "calculator") -> str:
    content = json.dumps({"name": name, "arguments": {"expression": expression}})
    return f"<tool_call>\n{content}\n</tool_call>"


@pytest.mark.parametrize(
    ("expression", "value"),
    [
        ("12 * (7 + 1)", 96),
        ("7 / 2", 3.5),
        ("-7 // 2", -4),
        ("7 % 4", 3),
        ("2 ** 10", 1024),
        ("2 ** -1", 0.5),
        ("1.5e2 + +1", 151.0),
    ],
)
def test_calculator_computes(expression: str, value: float) -> None:
    assert calculate(expression) == value


@pytest.mark.parametrize(
    ("expression", "message"),
    [
        ("1 / 0", "division by zero"),
        ("9 ** 9 ** 9", "too large"),
        ("10 ** 300 * 10 ** 300", "too large"),
        ("1e308 * 10", "not a finite number"),
        ("(-8) ** 0.5", "no such power"),
        ("__import__('os')", "only numbers"),
        ("'a' * 3", "only numbers"),
        ("True + 1", "only numbers"),
        ("1 +", "not an arithmetic expression"),
        ("(" * 150, "not an arithmetic expression"),
        ("1" * 201, "longer than 200 characters"),
    ],
)
def test_calculator_refuses_everything_else(expression: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        calculate(expression)


@given(st.text(alphabet="0123456789+-*/%(). e", max_size=60))
def test_calculator_raises_no_other_error(expression: str) -> None:
    answer = Calculator().step(call(expression)).text
    assert answer
    assert len(answer) < 400


def test_calculator_answers_calls_line_by_line() -> None:
    observation = Calculator().step(f"Let me see. {call('6*7')} and {call('8/3')}")
    assert observation.text == "42\n2.66666666667"
    assert not observation.done
    assert observation.score is None


@pytest.mark.parametrize(
    "action", ["<tool_call>6*7</tool_call>", call("1", name="search"), call(7), call(None)]
)
def test_calculator_answers_a_malformed_call(action: str) -> None:
    observation = Calculator().step(action)
    assert observation.text.startswith("error: ")
    assert not observation.done


def test_calculator_leaves_a_turn_without_call_to_the_grader() -> None:
    observation = Calculator().step("It is 42.")
    assert observation.done
    assert observation.score is None
