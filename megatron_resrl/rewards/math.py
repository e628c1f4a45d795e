"""Mathematical answers, compared by math-verify."""

from __future__ import annotations

import functools
import logging
from typing import Any

from math_verify import parse, verify

# The grader's time-out replaces math-verify's own, which hide what took too long: without one
# the library warns once per process.
for _module in ("math_verify.parser", "math_verify.grader"):
    logging.getLogger(_module).addFilter(
        lambda record: not record.getMessage().startswith("Timeout is disabled")
    )


def math_reward(
    response: str, ground_truth: Any, *, prompt: str = "", data_source: str = "", extra: Any = None
) -> float:
    r"""1 if the response's final answer equals the ground truth mathematically, otherwise 0.

    The response's answer is what math-verify extracts: the last `\boxed{}`, otherwise the last
    LaTeX or plain expression, with "the final answer is" and the like preferred. Equality is
    numerical or symbolic: 1/2, 0.5 and \frac{1}{2} are the same.

    It has no time limit of its own; call it through `Grader`.

    Args:
        response: Decoded text.
        ground_truth: A number, or text with the answer (LaTeX or plain, `\boxed{}` or not).
        prompt: Not used.
        data_source: Not used.
        extra: Not used.

    Raises:
        ValueError: The ground truth is no answer.

    Source: https://github.com/huggingface/Math-Verify
    """
    gold = _parse_gold(_answer_text(ground_truth))
    answer = parse(response, parsing_timeout=None)
    return float(verify(gold, answer, timeout_seconds=None))


def _answer_text(ground_truth: Any) -> str:
    if isinstance(ground_truth, dict):
        raise ValueError(
            f"the ground truth has fields ({', '.join(ground_truth)}) and is no answer: add the "
            "answer's to data.answer_key, e.g. reward_model.ground_truth.target"
        )
    if isinstance(ground_truth, bool) or not isinstance(ground_truth, (str, int, float)):
        raise ValueError(f"the ground truth is {ground_truth!r}: give a number or text")
    text = str(ground_truth)
    if "####" in text:
        raise ValueError(
            f"the ground truth is a whole solution ({text[-40:]!r}): cut the answer out with "
            "data.answer_pattern, e.g. '#### (.+)'"
        )
    return text if "\\boxed" in text else f"\\boxed{{{text}}}"


@functools.lru_cache(maxsize=1024)
def _parse_gold(text: str) -> list[Any]:
    """Parsed once for all responses to a prompt."""
    gold = parse(text, parsing_timeout=None)
    if not gold:
        raise ValueError(f"the ground truth {text!r} holds nothing that math-verify can read")
    return gold
