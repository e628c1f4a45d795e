"""Letters of multiple-choice questions."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from megatron_resrl.rewards.final_answer import answer_in, boxed, stated
from megatron_resrl.rewards.ground_truths import accepted_answers, shown

_LETTER = r"\\?(?:text|mathrm|mathbf|textbf)?\s*\{?\(?\s*([A-Za-z])\s*\)?\}?"
_CHOSEN = re.compile(
    rf"(?:the\s+)?(?:option|choice|answer|letter)?\s*{_LETTER}(?=\s*(?:[).:,;}}-]|\s[^a-z]|$))"
)
"""A letter at the start of an answer: C, (C), C. 12 km, \\text{(C)}, option C; not "A dog"."""
_LAST = re.compile(r"\(([A-Z])\)|\*\*\(?([A-Z])[).:]?\*\*|^\W*([A-Z])[).:]?\W*$", re.MULTILINE)
"""(C), **C**, or a line that is C."""
_RIGHT = re.compile(r"\(?([A-Za-z])[).:]?")


def multiple_choice_reward(
    response: str, ground_truth: Any, *, prompt: str = "", data_source: str = "", extra: Any = None
) -> float:
    r"""1 if the letter that the response chooses is the right one, otherwise 0.

    The letter is that of the last `\boxed{}`; else of the last sentence that says what the answer
    is ("Answer: C", "The answer is (C)"); else the last that stands in parentheses, in bold, or
    alone on its line. A box that is never closed, or that holds something else, chooses nothing.

    Args:
        response: Decoded text.
        ground_truth: A letter (C, c, (C) or C.), or a list of those, of which any is right.
        prompt: Not used.
        data_source: Not used.
        extra: Not used.

    Raises:
        ValueError: The ground truth is no letter.
    """
    right = _letters(ground_truth)
    return float(_chosen(response) in right)


def check_ground_truth(value: Any) -> None:
    """Refuses what is no letter.

    Raises:
        ValueError: With what is wrong and what would be right.
    """
    _letters(value)


def _letters(ground_truth: Any) -> list[str]:
    letters = []
    for text in accepted_answers(ground_truth):
        match = _RIGHT.fullmatch(boxed(text) or text)
        if match is None:
            raise ValueError(
                f"the ground truth is {shown(text)}, not the letter of a choice: name its column "
                "in data.answer_key, or cut it out with data.answer_pattern"
            )
        letters.append(match[1].upper())
    return letters


def _chosen(response: str) -> str:
    """The letter in upper case; empty: none."""
    for answer in _answers(response):
        match = _CHOSEN.match(answer.strip(" $*"))
        return match[1].upper() if match else ""
    found = _LAST.findall(response)
    return "".join(found[-1]) if found else ""


def _answers(response: str) -> Iterator[str]:
    """What the response calls its answer, the most binding first."""
    if "\\boxed" in response:
        yield answer_in(response, "boxed")
    if line := answer_in(response, "answer_line"):
        yield line
    if sentence := stated(response):
        yield sentence
