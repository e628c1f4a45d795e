r"""Which text of a response is its final answer: a box, what follows ####, a sentence, a number."""

# ruff: noqa: RUF001 - letters that look alike are told apart here
from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

_BOX = re.compile(r"\\(?:boxed|fbox|framebox)(?![A-Za-z])\s*")
_TAGGED = re.compile(r"<answer>(.*?)</answer>", re.DOTALL | re.IGNORECASE)
_BARE_BOX = re.compile(r"\\[A-Za-z]+|-?\d[\d.,]*\d|-?\d|[A-Za-z]")
"""What a box without braces holds: the next command, number or letter."""

_JOINT = re.compile(
    r"""(?:\s|\$|\\[()\[\],;:!]|\\q?quad(?![A-Za-z])|[,;]|\*\*
        |\\(?:text|mbox|textbf|mathrm)\s*\{\s*(?:and|or|,)\s*\}|\b(?:and|or)\b)*""",
    re.VERBOSE,
)
"""What may stand between two boxes of one answer."""

_RETRACTED = re.compile(
    r"""\b(?:(?:that|this|it|which|answer)(?:'s|\ is|\ was|\ must\ be)\ (?:clearly\ |also\ )?
            (?:wrong|incorrect|mistaken|not\ (?:right|correct|it))
        |is\ not\ it|made\ (?:a|an)\ (?:\w+\ )?(?:mistake|error)|scratch\ that|oops
        |mis(?:counted|read|calculated)|forgot)\b""",
    re.VERBOSE | re.IGNORECASE,
)
"""Says that what stands before is not the answer."""
_DOUBTED = re.compile(
    rf"""{_RETRACTED.pattern}
        |\b(?:wrong|incorrect|correction|instead|actually|should\ (?:be|have))\b
        |\bno\b\s?[.,!]|\b(?:wait|hmm)\b""",
    re.VERBOSE | re.IGNORECASE,
)
"""May say so; it does if another answer follows."""
_HASHES = re.compile(r"^[ \t]*####(?!\#)[ \t]*(.*)$", re.MULTILINE)
_STATED = re.compile(
    r"""(?:(?<!of\ )\b(?:the|my|our|your|its|final|correct|right|end)\s+(?:(?!number)\w+\s+){0,2}?
            (?:answers?|results?)
        |^[^\w\n]{0,20}(?:answers?|(?:final\s)?results?)|\banswer(?=\**\s?[:=]))\b
        (?:(?!\b(?:is|are)\b)[^.:=\n]){0,60}?
        (?:\s(?:is|are|equals|would\ be|must\ be)\b|\**\s*[:=])
        (?![\s*]*not\b)[\s*:=]*""",
    re.VERBOSE | re.IGNORECASE | re.MULTILINE,
)
"""A sentence that calls its end the answer; "12 answers are" and "each answer is" are none."""
_SENTENCE_END = re.compile(r"\n|[.!?](?=[\s*\"'”)]|$)|\s(?:I\ hope\b)", re.IGNORECASE)
_FILLER = re.compile(
    r"^(?:\s|\*|:|=|\b(?:therefore|thus|hence|so|simply|just|exactly|approximately|about|around|"
    r"equal to|going to be|the (?:number|value|integer|option|choice)|option|choice|indeed)\b)+",
    re.IGNORECASE,
)
_REASON = re.compile(
    r",?\s+(?:because|since|as|which|where|when|so|after|for|if|in total|altogether)\s|"
    r"\s(?:[Tt]herefore|[Hh]ence)\s|,\s(?:and|but)\s(?=[a-z]{2})"
)

_MATH = re.compile(
    r"""\$\$(?P<double>.+?)\$\$
    |\\\[(?P<bracket>(?:(?!\\\[).)+?)\\\]
    |\\\((?P<paren>(?:(?!\\\().)+?)\\\)
    |(?<!\\)\$(?P<tight>(?![\s$])(?:\\.|[^$\n\\])*?(?<=\S))(?<!\\)\$(?!\d)
    |(?<!\\)\$[ \t]+(?P<loose>(?:\\.|[^$\n\\])+?)[ \t]+\$(?!\d)""",
    re.VERBOSE | re.DOTALL,
)
"""Mathematics in delimiters. A dollar before an amount opens none: $5 and $7."""

_NUMBER = re.compile(
    r"""(?<![A-Za-z0-9_.^\\])(?:(?<![\d)\]}])[-+\N{MINUS SIGN}])?[$€£¥₹]?\ ?
    (?:
        \\[dt]?frac\s*\{[^{}]*\}\s*\{[^{}]*\}
        |\d+\ \d+/\d+
        |(?:\d{1,3}(?:(?:,|\{,\}|\\,|\\!,)\d{3})+(?!\d)|\d+)?[½⅓⅔¼¾⅕⅖⅗⅘⅙⅚⅐⅛⅜⅝⅞⅑⅒]
        |√\(?\d+\)?
        |(?:\d{1,3}(?:(?:,|\{,\}|\\,|\\!,)\d{3})+(?!\d)|\d+)(?:\.\d+)?(?:[eE][-+]?\d+)?
        |\.\d+(?:[eE][-+]?\d+)?
    )
    (?:\ ?(?:\\times|×|\*|x)\ ?10\^?(?:\{[-+]?\d+\}|[-+]?\d+|[⁻⁰¹²³⁴⁵⁶⁷⁸⁹]+))?
    (?:\s?/\s?\d+(?:\.\d+)?|\^\{?-?\d+\}?|[⁰¹²³⁴⁵⁶⁷⁸⁹]+|!)?
    (?:√\d+|π|\s?\\?%)?""",
    re.VERBOSE,
)
_LETTER = re.compile(r"\\?[A-Za-z]+(?:_\{?\w+\}?)?")
_ANSWER_LINE = re.compile(r"\banswer\**[ \t]*:([^\n]*)", re.IGNORECASE)

AnswerForm = Literal["auto", "boxed", "last_number", "answer_line", "hashes"]
"""What counts as the final answer, see `answer_in`."""


@dataclass(frozen=True)
class _Span:
    start: int
    end: int
    text: str


def final_answer(response: str) -> str:
    r"""The text of a response that is its final answer, without the box or sentence around it.

    In this order:

    1. The last `\boxed{}` (or `\fbox{}`; `\boxed {7}` and `\boxed 7` too) that holds something,
       joined by commas with boxes before it where nothing but `and`, `or` and commas stands
       between. Once it is taken back ("that is wrong"), what is said after that counts.
    2. What follows the last `####`.
    3. What follows "the answer is", "final answer:" or "the final result is".
    4. The last formula or number.

    Args:
        response: Decoded text.

    Returns:
        LaTeX or plain text; empty if there is no answer.
    """
    boxes, unfinished = _boxes(response)
    if unfinished:
        return ""
    if boxes:
        rest = response[boxes[-1].end :]
        if doubted := _DOUBTED.search(rest):
            after = rest[doubted.end() :]
            if answer := _after_hashes(after) or stated(after):
                return answer
        if retracted := _RETRACTED.search(rest):
            return _last_expression(rest[retracted.end() :])
        return _joined(response, boxes)
    return _after_hashes(response) or stated(response) or _last_expression(response)


def answer_in(response: str, form: AnswerForm) -> str:
    r"""The final answer of a response that has to be written in a certain form.

    Args:
        response: Decoded text.
        form: `auto`: see `final_answer`. `boxed`: the last `\boxed{}`, and nothing else.
            `last_number`: the last number, inside of formulas too. `answer_line`: what follows the
            last "Answer:" on its line (DAPO, arXiv 2503.14476). `hashes`: what follows the last
            `####` (GSM8K).

    Returns:
        LaTeX or plain text; empty if there is no answer in this form.
    """
    if form == "boxed":
        boxes, unfinished = _boxes(response)
        return "" if unfinished or not boxes else _joined(response, boxes)
    if form == "last_number":
        numbers = _NUMBER.findall(response)
        return numbers[-1].strip() if numbers else ""
    if form == "answer_line":
        lines = _ANSWER_LINE.findall(response)
        return _answer_of(lines[-1]) if lines else ""
    return _after_hashes(response) if form == "hashes" else final_answer(response)


def _answer_of(line: str) -> str:
    text = line.strip(" *\t\r")
    return boxed(text) or _formula_of(text) or text.removesuffix(".")


def tagged(text: str) -> str | None:
    """What stands in the last `<answer></answer>` of a text; None: there is none."""
    answers = _TAGGED.findall(text)
    return answers[-1] if answers else None


def boxed(text: str) -> str | None:
    r"""What stands in the last `\boxed{}` of a text, joined as in `final_answer`; None: no box."""
    boxes, _ = _boxes(text)
    return _joined(text, boxes) if boxes else None


def closing_brace(text: str, opening: int) -> int | None:
    r"""Index of the brace that closes the one at `opening`; `\{` and `\}` are no braces."""
    depth, index = 0, opening
    while index < len(text):
        letter = text[index]
        if letter == "\\":
            index += 1
        elif letter == "{":
            depth += 1
        elif letter == "}":
            depth -= 1
            if depth == 0:
                return index
        index += 1
    return None


def _boxes(text: str) -> tuple[list[_Span], bool]:
    """Outermost boxes that are not blank, and whether the last one is never closed."""
    boxes: list[_Span] = []
    position = 0
    while match := _BOX.search(text, position):
        opening = position = match.end()
        if text.startswith("{", opening):
            closing = closing_brace(text, opening)
            if closing is None:
                return boxes, bool(text[opening + 1 :].strip())
            content, position = text[opening + 1 : closing], closing + 1
        elif bare := _BARE_BOX.match(text, opening):
            content, position = bare[0], bare.end()
        else:
            continue
        if content.strip():
            boxes.append(_Span(match.start(), position, content.strip()))
    return boxes, False


def _joined(text: str, boxes: list[_Span]) -> str:
    first = len(boxes) - 1
    while first > 0:
        between = text[boxes[first - 1].end : boxes[first].start]
        if not between or not _JOINT.fullmatch(between) or "\n\n" in between:
            break
        first -= 1
    parts = [box.text for box in boxes[first:]]
    return ", ".join(dict.fromkeys(parts))


def _after_hashes(text: str) -> str:
    end = len(text.rstrip())
    for match in reversed(list(_HASHES.finditer(text))):
        line = match[1].strip().strip("*").strip()
        last = match.end() >= end
        # Otherwise it is a headline.
        if line and (last or not re.search(r"(?<!\\)\b[A-Za-z]{3,}", _without_commands(line))):
            return stated(line) or _formula_of(line) or line
    return ""


def stated(text: str) -> str:
    """The last answer that a text calls one, or what is said after it is taken back; or nothing."""
    for match in reversed(list(_STATED.finditer(text))):
        end = _SENTENCE_END.search(text, match.end())
        stop = end.start() if end else len(text)
        rest = text[match.end() : stop]
        if not rest.strip(" *:$"):
            # The answer stands in a line of its own.
            following = text[match.end() :].lstrip()
            rest = following.split("\n\n")[0] if "\n\n" in following else following
            stop = match.end() + len(text[match.end() :]) - len(following) + len(rest)
        if formula := _formula_at(text, match.end()):
            stop = max(stop, formula.end)
        if retracted := _RETRACTED.search(text, stop):
            return _last_expression(text[retracted.end() :])
        if formula:
            return formula.text
        if answer := _plain_answer(rest):
            return answer
    return ""


def _plain_answer(sentence: str) -> str:
    """An answer at the start of the rest of a sentence: a formula, a number, or words."""
    rest = _FILLER.sub("", sentence).strip()
    if formula := _formula_of(rest):
        return formula
    rest = _REASON.split(rest)[0].strip(" *\t\n")
    words = re.findall(r"[A-Za-z]{2,}", _without_commands(rest))
    if len(words) <= 4:
        return rest
    numbers = list(_NUMBER.finditer(rest))
    return numbers[0][0].strip() if numbers else ""


def _without_commands(text: str) -> str:
    return re.sub(r"\\[A-Za-z]+|\\text\s*\{[^{}]*\}", " ", text)


def _formulas(text: str) -> Iterator[_Span]:
    for match in _MATH.finditer(text):
        content = next(group for group in match.groups() if group is not None)
        yield _Span(match.start(), match.end(), content.strip())


def _formula_at(text: str, position: int) -> _Span | None:
    """The formula that begins where the words of a sentence end, with those joined to it."""
    filler = _FILLER.match(text[position:])
    position += filler.end() if filler else 0
    found: _Span | None = None
    for span in _formulas(text):
        if span.start < position:
            continue
        if found is None:
            if text[position : span.start].strip(" *:=~\n"):
                return None
            found = span
        elif (between := text[found.end : span.start]).strip() and _JOINT.fullmatch(between):
            found = _Span(found.start, span.end, f"{found.text}, {span.text}")
        else:
            break
    return found


def _formula_of(text: str) -> str:
    """The formula that a text begins with."""
    span = _formula_at(text, 0)
    return span.text if span else ""


def _last_expression(text: str) -> str:
    formulas = list(_formulas(text))
    numbers = [
        _Span(match.start(), match.end(), match[0].strip())
        for match in _NUMBER.finditer(text)
        if not any(span.start <= match.start() < span.end for span in formulas)
    ]
    spans = sorted([*formulas, *numbers], key=lambda span: span.end)
    # "5 is the value of $x$" ends with the name, not the value.
    telling = [span for span in spans if not _LETTER.fullmatch(span.text)] or spans
    if not telling:
        return ""
    last = telling[-1]
    if last in formulas:
        joined = [last]
        for span in reversed(formulas[: formulas.index(last)]):
            between = text[span.end : joined[0].start]
            if not re.search(r"and|or|,", between) or not _JOINT.fullmatch(between):
                break
            joined.insert(0, span)
        return ", ".join(span.text for span in joined)
    return last.text
