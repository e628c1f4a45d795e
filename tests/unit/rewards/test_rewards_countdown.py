"""Countdown tasks and the arithmetic in their answers."""

from __future__ import annotations

import operator
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron_resrl.rewards.arithmetic import LONGEST, evaluated
from megatron_resrl.rewards.countdown import check_ground_truth, countdown_reward

TASK = {"numbers": [39, 53, 11], "target": 81}
SIGNS = {"+": operator.add, "-": operator.sub, "*": operator.mul, "/": operator.truediv}

Tree = int | tuple[str, "Tree", "Tree"]
trees: st.SearchStrategy[Tree] = st.recursive(
    st.integers(0, 50),
    lambda inner: st.tuples(st.sampled_from(list(SIGNS)), inner, inner),
    max_leaves=8,
)


def computed(tree: Tree) -> Fraction:
    if isinstance(tree, int):
        return Fraction(tree)
    return SIGNS[tree[0]](computed(tree[1]), computed(tree[2]))


def written(tree: Tree) -> str:
    return (
        str(tree) if isinstance(tree, int) else f"({written(tree[1])}{tree[0]}{written(tree[2])})"
    )


def leaves(tree: Tree) -> list[int]:
    return [tree] if isinstance(tree, int) else [*leaves(tree[1]), *leaves(tree[2])]


@given(trees)
def test_evaluated_is_exact_for_any_expression(tree: Tree) -> None:
    try:
        expected = (computed(tree), leaves(tree))
    except ZeroDivisionError:
        expected = None
    assert evaluated(written(tree)) == expected


@pytest.mark.parametrize(
    "text",
    [
        *("", "2 +", "2 ** 3", "2 // 1", "2.5", "True", "x", "f(2)", "2, 3", "__import__('os')"),
        *("1/0", "1/(2-2)", "(" * 300 + "1" + ")" * 300, "1" * (LONGEST + 1), "'a'", "(3)(4)"),
    ],
)
def test_evaluated_refuses_all_but_arithmetic(text: str) -> None:
    assert evaluated(text) is None


@pytest.mark.parametrize(
    "response",
    [
        "<answer>39 + (53 - 11)</answer>",
        "<answer>1</answer> no <answer> (39 - 11) + 53 = 81 </answer>",
        "<ANSWER>53 - 11\n+ 39</ANSWER>",
        "<answer>53 \N{MINUS SIGN} 11 + 39</answer>",
        r"so \boxed{53 - 11 + 39 = 81}",
        r"<answer>39 \times 1 + 0</answer> <answer>[39 + 53] - 11</answer>",
    ],
)
def test_countdown_accepts_expressions_of_all_numbers(response: str) -> None:
    assert countdown_reward(response, TASK) == 1.0


@pytest.mark.parametrize(
    "response",
    [
        "39 + (53 - 11)",
        "<answer>39 + (53 - 11)",
        "<answer>81</answer>",
        "<answer>39 + 53 - 11 + 0</answer>",
        "<answer>39 + 39 + 3</answer>",
        "<answer>39 + 53 + 11</answer>",
        "<answer>39 + 53 - 11 = 80</answer>",
        "<answer>39 + 53 - 11 =</answer>",
        "<answer>39 + 53 - 11</answer><answer></answer>",
        "<answer>0 * (39 + 53 + 11) + 81</answer>",
    ],
)
def test_countdown_rejects_any_other_answer(response: str) -> None:
    assert countdown_reward(response, TASK) == 0.0


def test_countdown_use_all_says_whether_numbers_may_be_left() -> None:
    task = {"nums": [2, 3, 4], "target": 6}
    assert countdown_reward("<answer>2 * 3</answer>", task) == 0.0
    assert countdown_reward("<answer>2 * 3</answer>", task, use_all=False) == 1.0
    assert countdown_reward("<answer>2 + 2 + 2</answer>", task, use_all=False) == 0.0
    assert countdown_reward("<answer>4 + 4 / 2</answer>", task, use_all=False) == 0.0


def test_countdown_reads_a_task_as_json() -> None:
    assert countdown_reward("<answer>1 + 2</answer>", '{"numbers": [1, 2], "target": 3}') == 1.0


@pytest.mark.parametrize(
    "value",
    [
        *(None, 81, "81", "39 + 53 - 11", [39, 53], {}, {"numbers": [1, 2]}, {"target": 3}),
        {"numbers": [], "target": 0},
        {"numbers": ["1"], "target": 1},
        {"numbers": [1], "target": True},
    ],
)
def test_countdown_refuses_what_is_no_task(value: Any) -> None:
    with pytest.raises(ValueError, match=r'"numbers": \[39, 53, 11\], "target": 81'):
        check_ground_truth(value)
