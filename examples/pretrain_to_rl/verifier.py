"""The reward of the example: a solution is right or it is not."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from puzzles import SEPARATOR, apply

_STEP = re.compile(r"([0-9]{1,4})([-+*])([0-9]{1,4})=([0-9]{1,4})")
"""Longer numbers are in no right solution, and are not read."""


def score(response: str, ground_truth: Mapping[str, Any], **context: Any) -> float:
    """The reward (`reward.function`): 1 for a right solution, otherwise 0.

    Args:
        response: What the model wrote.
        ground_truth: The question's column `answer`: `numbers` and `target`.
        context: What else a reward function is given; not used.
    """
    return float(is_solution(response, ground_truth["numbers"], ground_truth["target"]))


def is_solution(text: str, numbers: Sequence[int], target: int) -> bool:
    """Whether a text is a right solution, and nothing else.

    Args:
        text: Steps such as `3*7=21`, separated by `;`.
        numbers: Those that are given.
        target: What the last step must give.
    """
    left, result = Counter(numbers), None
    for step in text.split(SEPARATOR.strip()):
        found = _STEP.fullmatch(step.strip())
        if found is None:
            return False
        first, second, result = int(found[1]), int(found[3]), int(found[4])
        used = Counter((first, second))
        if not used <= left or apply(first, found[2], second) != result:
            return False
        left = left - used + Counter((result,))
    return result == target


def check_ground_truth(value: Any) -> None:
    """Refuses an answer that no response could be held against, before the first step.

    Raises:
        ValueError: It is no mapping with whole `numbers` and a whole `target`.
    """
    match value:
        case {"numbers": [*numbers], "target": int()} if all(type(n) is int for n in numbers):
            return
    raise ValueError(f'{value!r} is not of the form {{"numbers": [3, 7, 4], "target": 17}}')
