"""Mathematical answers, compared by math-verify."""

from __future__ import annotations

import functools
import json
import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import InvalidOperation
from typing import Any

from latex2sympy2_extended import NormalizationConfig, is_expr_of_only_symbols
from math_verify import LatexExtractionConfig, parse, verify
from sympy.core.relational import Equality

from megatron_resrl.rewards.exactness import contradicts, same_number
from megatron_resrl.rewards.final_answer import AnswerForm, answer_in, boxed, stated
from megatron_resrl.rewards.ground_truths import accepted_answers, shown
from megatron_resrl.rewards.spelling import exact_decimal, normalised
from megatron_resrl.rewards.units import Value, same_unit, value_of

# The grader's time-out replaces math-verify's own, which hide what took too long: without one
# the library warns once per process.
for _module in ("math_verify.parser", "math_verify.grader"):
    logging.getLogger(_module).addFilter(
        lambda record: not record.getMessage().startswith("Timeout is disabled")
    )

_EXTRACTION = LatexExtractionConfig(
    boxed_match_priority=0,
    # Units, operators and small corrections are ours: math-verify's take a + b + c for a + b.
    normalization_config=NormalizationConfig(
        basic_latex=True, units=False, malformed_operators=False, nits=False, boxed="last"
    ),
)

SENTENCE_WORDS = 6
"""Beside numbers, outside of boxes: from so many on, a ground truth is no answer."""


def math_reward(
    response: str,
    ground_truth: Any,
    *,
    prompt: str = "",
    data_source: str = "",
    extra: Any = None,
    answer: AnswerForm = "auto",
) -> float:
    r"""1 if the response's final answer equals the ground truth mathematically, otherwise 0.

    Which text is the final answer says `answer_in`; how it may be written, `normalised`.
    Equality is math-verify's, numerical or symbolic: 1/2, 0.5 and \frac{1}{2} are the same; exact
    numbers are compared exactly. Units count where both have one that is known.

    It has no time limit of its own; call it through `Grader`.

    Args:
        response: Decoded text.
        ground_truth: A number, text with the answer (LaTeX or plain, `\boxed{}` or not), or a list
            of those, of which any is right.
        prompt: Not used.
        data_source: Not used.
        extra: Not used.
        answer: The form that the final answer has to have.

    Raises:
        ValueError: The ground truth is no answer.

    Source: https://github.com/huggingface/Math-Verify
    """
    golds = [_read_gold(text) for text in accepted_answers(ground_truth)]
    found = answer_in(response, answer)
    return float(bool(found) and any(_is_right(gold, found) for gold in golds))


def check_ground_truth(value: Any) -> None:
    """Refuses what is no mathematical answer.

    Raises:
        ValueError: With what is wrong and what would be right.
    """
    for text in accepted_answers(value):
        _read_gold(text)


@dataclass(frozen=True)
class _Gold:
    """A ground truth, read once for all responses to a prompt."""

    text: str
    value: Value


@functools.lru_cache(maxsize=4096)
def _read_gold(text: str) -> _Gold:
    if "####" in text:
        raise ValueError(
            f"the ground truth is a whole solution ({text[-40:]!r}): cut the answer out with "
            "data.answer_pattern, e.g. '#### (.+)'"
        )
    if (problem := _kind_of(text)) and boxed(text) is None:
        raise ValueError(
            f"the ground truth {shown(text)} is {problem}, not a mathematical answer: name "
            "another column in data.answer_key, cut the answer out with data.answer_pattern, or "
            "give a reward.function that can judge it"
        )
    answer = boxed(text) or stated(text) or text
    normal = normalised(_number_text(answer))
    gold = _Gold(normal, value_of(normal, letters=False))
    readable = any(_parsed(each) is not None for each in (normal, gold.value.text) if each)
    if not (readable or gold.value.choice or (normal and _words(normal) is not None)):
        raise ValueError(
            f"the ground truth {shown(text)} holds nothing that math-verify can read: correct "
            "the row or drop it, or give a reward.function that can judge it"
        )
    return gold


def _number_text(text: str) -> str:
    """Texts such as 1e-05 and 6.02E23, as files write floats."""
    if not re.fullmatch(r"\s*[-+]?(?:\d+\.?\d*|\.\d+)[eE][-+]?\d{1,3}\s*", text):
        return text
    try:
        return exact_decimal(text.strip())
    except InvalidOperation:
        return text


def _kind_of(text: str) -> str | None:
    """What a text without a box is if it is no answer; None: it may be one."""
    if re.match(r"\s*(?:assert|def|import|from|print|return|class)\b(?!\s*[=}])", text):
        return "code"
    if re.search(r"<(?:think|tool_call|answer)>", text):
        return "a whole response"
    if re.search(r"^\s*(?:def|return|import|while|for|if) .*", text, re.MULTILINE) and "\n" in text:
        return "code"
    plain = re.sub(r"\\text ?\{[^{}]*\}|\\[A-Za-z]+", " ", text)
    if len(re.findall(r"[A-Za-z]{2,}", plain)) >= SENTENCE_WORDS and re.search(r"\d", plain):
        return "a sentence"
    if text[:1] not in ("{", "["):
        return None
    try:
        data = json.loads(text)
    except ValueError:
        return "code" if re.search(r"['\"]\s*[:,\]]", text) else None
    if isinstance(data, dict) or any(not isinstance(each, (int, float)) for each in data):
        return "JSON"
    return None


def _is_right(gold: _Gold, answer: str) -> bool:
    text = normalised(_number_text(answer))
    if not text:
        return False
    if _squeezed(gold.text) == _squeezed(text):
        return True
    expected = gold.value
    named = re.search(r"(?<![A-Za-z\\])[A-Za-z](?![A-Za-z])", expected.text)
    value = value_of(text, letters=named is None)
    if (by_option := _same_option(gold, value)) is not None:
        return by_option
    if expected.unit and value.unit and not same_unit(expected.unit, value.unit):
        return False
    if expected.text and value.text and _same(expected.text, value.text):
        return True
    return (expected.text, value.text) != (gold.text, text) and _same(gold.text, text)


def _same_option(gold: _Gold, answer: Value) -> bool | None:
    """Whether an option of a multiple-choice question is right; None: the values decide."""
    letters = []
    for value in (gold.value, answer):
        alone = re.fullmatch(r"[A-Za-z]|\\text ?\{ ?([A-Za-z]) ?\}", value.text)
        letters.append(value.choice or (alone and _letters(value.text).upper()))
    if not (gold.value.choice or answer.choice) or None in letters:
        return None
    return letters[0] == letters[1]


def _same(gold: str, answer: str) -> bool:
    if _squeezed(gold) == _squeezed(answer):
        return True
    if _words(gold) is not None or _words(answer) is not None:
        return _letters(gold) == _letters(answer)
    expected, found = _parsed(gold), _parsed(answer)
    if expected is None or found is None or _is_zero_form(expected, found):
        return False
    if (equal := same_number(expected, found)) is not None:
        return equal
    return verify([expected], [found], timeout_seconds=None) and not contradicts(expected, found)


def _is_zero_form(gold: Any, answer: Any) -> bool:
    """2x - y = 0 is an equation, which math-verify takes for the answer 0."""
    return (
        isinstance(answer, Equality)
        and not isinstance(gold, Equality)
        and answer.rhs == 0
        and bool(answer.lhs.free_symbols)
        and not is_expr_of_only_symbols(answer.lhs)
    )


def _squeezed(text: str) -> str:
    """Without blanks, except between two numbers or letters."""
    return re.sub(r"(?<![\w]) | (?![\w])", "", text)


def _words(text: str) -> str | None:
    """The words that a text is; None: it is mathematics."""
    plain = re.sub(r"\\text ?\{([^{}]*)\}", r"\1", text)
    if not re.fullmatch(r"[A-Za-z][A-Za-z0-9 ,.':()-]*", plain):
        return None
    if plain == text and not re.fullmatch(r"[A-Za-z][a-z]{3,}|(?=.*[A-Za-z]{3} )[A-Za-z ]+", plain):
        return None
    return plain


def _letters(text: str) -> str:
    return re.sub(r"\\text(?![A-Za-z])|[^A-Za-z0-9]", "", text).lower()


@functools.lru_cache(maxsize=4096)
def _parsed(text: str) -> Any:
    """The expression that math-verify reads; None: none."""
    found: Sequence[Any] = parse(
        f"\\boxed{{{text}}}", [_EXTRACTION], fallback_mode="no_fallback", parsing_timeout=None
    )
    return found[0] if found else None
