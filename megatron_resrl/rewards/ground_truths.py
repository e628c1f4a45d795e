"""Ground truths as they come out of files: numbers, texts, lists of accepted answers, holes."""

from __future__ import annotations

import math
from decimal import Decimal
from fractions import Fraction
from typing import Any

from megatron_resrl.rewards.spelling import exact_decimal

HOLES = ("nan", "none", "null", "<na>")
"""What libraries write where there is no value."""
_SHOWN_CHARACTERS = 80


def accepted_answers(ground_truth: Any) -> list[str]:
    """The answers that a ground truth accepts, as texts; numbers in full digits.

    Args:
        ground_truth: A number (of Python or numpy), a text, or a list, tuple or array of those, of
            which any is right.

    Returns:
        At least one.

    Raises:
        ValueError: It is something else, or empty.
    """
    if hasattr(ground_truth, "tolist"):  # An array or scalar of numpy, without importing it here.
        ground_truth = ground_truth.tolist()
    if isinstance(ground_truth, (list, tuple)):
        if not ground_truth:
            raise ValueError("the ground truth is an empty list: give at least one accepted answer")
        return [_text(each) for each in ground_truth]
    return [_text(ground_truth)]


def shown(value: Any) -> str:
    """A value in an error message."""
    text = repr(value)
    return text if len(text) <= _SHOWN_CHARACTERS else f"{text[:_SHOWN_CHARACTERS]}..."


def _text(answer: Any) -> str:
    if hasattr(answer, "tolist"):
        answer = answer.tolist()
    if isinstance(answer, dict):
        raise ValueError(
            f"the ground truth has fields ({', '.join(map(str, answer))}) and is no answer: add "
            "the answer's field to data.answer_key, e.g. reward_model.ground_truth.target"
        )
    if isinstance(answer, bool) or not isinstance(answer, (str, int, float, Decimal, Fraction)):
        raise ValueError(f"the ground truth is {shown(answer)}: give a number or text")
    if isinstance(answer, (float, Decimal)):
        if not math.isfinite(answer):
            raise ValueError(f"the ground truth is {answer!r}, a missing value: drop the row")
        return exact_decimal(str(answer))
    if isinstance(answer, str) and answer.strip().lower() in HOLES:
        raise ValueError(f"the ground truth is {answer!r}, a missing value: drop the row")
    return str(answer).strip()
