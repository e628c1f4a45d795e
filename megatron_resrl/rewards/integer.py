"""Integer answers, compared digit by digit."""

from __future__ import annotations

import re
from typing import Any

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
        ground_truth: An integer, or text with nothing but one (1,234 and 27.0 are fine).
        prompt: Not used.
        data_source: Not used.
        extra: Not used.

    Raises:
        ValueError: The ground truth is not an integer.
    """
    right = _whole(ground_truth)
    numbers = list(_NUMBER.finditer(_plain_minus(response)))
    if not numbers or numbers[-1]["rest"]:
        return 0.0
    return float(_canonical(numbers[-1]) == right)


def _whole(ground_truth: Any) -> str:
    text = "" if isinstance(ground_truth, bool) else str(ground_truth).strip()
    match = _INTEGER.fullmatch(_plain_minus(text))
    if match is None:
        raise ValueError(
            f"the ground truth is {ground_truth!r}, not an integer: choose its column with "
            "data.answer_key, or cut it out with data.answer_pattern"
        )
    return _canonical(match)


def _plain_minus(text: str) -> str:
    return text.replace("\N{MINUS SIGN}", "-")


def _canonical(match: re.Match[str]) -> str:
    """Text, because Python refuses to convert very long integers."""
    magnitude = match["digits"].replace(",", "").lstrip("0") or "0"
    return f"-{magnitude}" if match["sign"] == "-" and magnitude != "0" else magnitude
