"""Whether a response has the form that was asked for, whatever it says."""

from __future__ import annotations

import json
import re
from typing import Any, Literal

from megatron_resrl.rewards.final_answer import answer_in

Form = Literal["think", "think_answer", "boxed", "json"]

_TAGS = re.compile(r"<(/?)(think|answer)>")
_FENCED = re.compile(r"```(?:json)?\s*\n(.*?)\n?```", re.DOTALL)
_ORDER = {
    "think": ["think", "/think"],
    "think_answer": ["think", "/think", "answer", "/answer"],
}


def format_reward(
    response: str,
    ground_truth: Any,
    *,
    prompt: str = "",
    data_source: str = "",
    extra: Any = None,
    form: Form = "think_answer",
    opened: bool = False,
    pattern: str | None = None,
) -> float:
    r"""1 if the response has a form, otherwise 0.

    Args:
        response: Decoded text.
        ground_truth: Not used; any will do.
        prompt: Not used.
        data_source: Not used.
        extra: Not used.
        form: `think`: `<think>` at the start, thoughts, `</think>`, and something behind it.
            `think_answer`: thoughts in `<think></think>` and then an answer in
            `<answer></answer>`, with nothing but blanks around them (DeepSeek-R1, arXiv
            2501.12948). Each tag stands there once. `boxed`: a `\boxed{}` that is closed and holds
            something. `json`: the whole response, or its last fenced block, is JSON.
        opened: The prompt ends with `<think>`, so that the response begins with thoughts.
        pattern: Regular expression for the whole response, in place of `form`; a dot stands for
            the end of a line, too.

    Raises:
        ValueError: `pattern` is no regular expression.
    """
    if pattern is not None:
        return float(_compiled(pattern).fullmatch(response) is not None)
    if form == "boxed":
        return float(bool(answer_in(response, "boxed")))
    if form == "json":
        return float(_is_json(response))
    return float(_has_tags(f"<think>{response}" if opened else response, form))


def check_ground_truth(value: Any) -> None:
    """Accepts any ground truth: none is used."""


def check_options(*, pattern: str | None = None, **others: Any) -> None:
    """Refuses options that do not go together.

    Raises:
        ValueError: With what is wrong and what would be right.
    """
    if pattern is not None:
        _compiled(pattern)
        if others:
            raise ValueError(f"pattern stands in place of {', '.join(others)}: give one of both")


def _compiled(pattern: str) -> re.Pattern[str]:
    try:
        return re.compile(pattern, re.DOTALL)
    except re.error as error:
        raise ValueError(f"pattern is no regular expression ({error}): correct it") from None


def _has_tags(text: str, form: str) -> bool:
    matches = list(_TAGS.finditer(text))
    if [match[1] + match[2] for match in matches] != _ORDER[form]:
        return False
    # Before, inside and between the tags, and behind the last.
    places = [0, *(place for match in matches for place in match.span()), len(text)]
    parts = [text[start:end].strip() for start, end in zip(places[::2], places[1::2], strict=True)]
    if form == "think":
        return not parts[0] and bool(parts[2])
    return [bool(part) for part in parts] == [False, True, False, True, False]


def _is_json(text: str) -> bool:
    blocks = _FENCED.findall(text)
    for candidate in (text, *blocks[-1:]):
        try:
            json.loads(candidate)
        except (ValueError, RecursionError):
            continue
        return True
    return False
