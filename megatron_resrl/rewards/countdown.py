"""Countdown: an expression of given numbers that has a given value."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from typing import Any, NamedTuple

from megatron_resrl.rewards.arithmetic import evaluated
from megatron_resrl.rewards.final_answer import answer_in, tagged
from megatron_resrl.rewards.ground_truths import shown

_EXAMPLE = '{"numbers": [39, 53, 11], "target": 81}'


def countdown_reward(
    response: str,
    ground_truth: Any,
    *,
    prompt: str = "",
    data_source: str = "",
    extra: Any = None,
    use_all: bool = True,
) -> float:
    r"""1 if the answer is an expression of the given numbers with the target as its value, else 0.

    The answer stands in the last `<answer></answer>`, or else in the last `\boxed{}`; "= 81" behind
    the expression may say its value. It may have + - * / and parentheses, and is computed exactly.

    Args:
        response: Decoded text.
        ground_truth: `numbers` (or `nums`) and `target`, as a mapping or as JSON of one.
        prompt: Not used.
        data_source: Not used.
        extra: Not used.
        use_all: Every number has to be used, once; False: at most once.

    Raises:
        ValueError: The ground truth is something else.

    Source: https://github.com/Jiayi-Pan/TinyZero, verl/utils/reward_score/countdown.py
    """
    task = _read(ground_truth)
    in_tags = tagged(response)
    answer = answer_in(response, "boxed") if in_tags is None else in_tags
    sides = [evaluated(side) for side in answer.split("=")]
    if any(side is None or side[0] != task.target for side in sides):
        return 0.0
    used, given = Counter(sides[0][1] if sides[0] else []), Counter(task.numbers)
    return float(used == given if use_all else used <= given)


def check_ground_truth(value: Any) -> None:
    """Refuses what holds no numbers and target.

    Raises:
        ValueError: With what is wrong and what would be right.
    """
    _read(value)


class _Task(NamedTuple):
    numbers: list[int]
    target: int


def _read(value: Any) -> _Task:
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            raise ValueError(f"{shown(value)} is no JSON: give e.g. {_EXAMPLE}") from None
    if isinstance(value, Mapping):
        numbers, target = value.get("numbers", value.get("nums")), value.get("target")
        numbers = list(numbers) if isinstance(numbers, (list, tuple)) else []
        if numbers and all(type(each) is int for each in [*numbers, target]):
            return _Task(numbers, int(str(target)))
    raise ValueError(
        f"{shown(value)} is not the numbers and the target of a Countdown task: give e.g. "
        f"{_EXAMPLE} (data.answer_key may name a column such as reward_model.ground_truth)"
    )
