"""Integer answers, compared digit by digit."""

from __future__ import annotations

import re
from typing import Any

from megatron_resrl.rewards.ground_truths import accepted_answers, shown

_NUMBER = re.compile(
    r"""
    (?<![0-9A-Za-z_])                       # not inside of a word or number: x2, 1e5
    (?P<sign>(?<![)\]}.-])-)?                # after those, a minus is a subtraction or a dash
    (?P<digits>[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]+|(?<!\.)(?=\.[0-9]))
    (?P<rest>(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?(?:/[0-9]+)*)
    """,
    re.VERBOSE,
)
_INTEGER = re.compile(r"(?P<sign>[-+]?)(?P<digits>[0-9]{1,3}(?:,[0-9]{3})+|[0-9]+)(?:\.0*)?")


def integer_reward(
    response: str, ground_truth: Any, *, prompt: str = "", data_source: str = "", extra: Any = None
) -> float:
    """1 if the last number of the response is the ground truth, otherwise 0.

    The last number must be written as an integer: thousands may be set apart by commas, a minus
    directly before it counts unless something stands directly before that (7-5 ends in 5).
    Decimals, fractions and exponents (42.0, 84/2, 4e1) are numbers, but not integers, and never
    right. Digits inside words (x2) are not numbers. Any number of digits will do.

    Args:
        response: Decoded text.
        ground_truth: An integer, or text with nothing but one (1,234 and 27.0 are fine), or a list
            of those, of which any is right.
        prompt: Not used.
        data_source: Not used.
        extra: Not used.

    Raises:
        ValueError: The ground truth is not an integer.
    """
    right = _accepted(ground_truth)
    return float(last_integer(response) in right)


def last_integer(response: str) -> str:
    """The last number of a response in plain digits; empty: there is none, or it is no integer."""
    numbers = list(_NUMBER.finditer(_plain_minus(response)))
    if not numbers or numbers[-1]["rest"]:
        return ""
    return _canonical(numbers[-1])


def check_ground_truth(value: Any) -> None:
    """Refuses what is no integer.

    Raises:
        ValueError: With what is wrong and what would be right.
    """
    _accepted(value)


def _accepted(ground_truth: Any) -> list[str]:
    fix = "choose its column with data.answer_key, or cut it out with data.answer_pattern"
    try:
        texts = accepted_answers(ground_truth)
    except ValueError as error:
        raise ValueError(f"{error}; it is not an integer: {fix}") from None
    matches = [_INTEGER.fullmatch(_plain_minus(text)) for text in texts]
    for text, match in zip(texts, matches, strict=True):
        if match is None:
            raise ValueError(f"the ground truth is {shown(text)}, not an integer: {fix}")
    return [_canonical(match) for match in matches if match]


def _plain_minus(text: str) -> str:
    return text.replace("\N{MINUS SIGN}", "-")


def _canonical(match: re.Match[str]) -> str:
    """Text, because Python refuses to convert very long integers."""
    magnitude = match["digits"].replace(",", "").lstrip("0") or "0"
    return f"-{magnitude}" if match["sign"] == "-" and magnitude != "0" else magnitude
