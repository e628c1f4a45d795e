r"""Spellings of mathematics, rewritten to those that math-verify reads as they are meant."""

# ruff: noqa: RUF001 - letters that look alike are told apart here
from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable
from decimal import Decimal
from fractions import Fraction

from megatron_resrl.rewards.final_answer import closing_brace

LARGEST_EXPONENT = 400
"""Of ten, up to which numbers like 1.2e5 are written out."""

_SUPERSCRIPTS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻⁽⁾ⁿ", "0123456789+-()n")
_SUBSCRIPTS = str.maketrans("₀₁₂₃₄₅₆₇₈₉", "0123456789")
_SYMBOLS = {
    **dict.fromkeys("\N{MINUS SIGN}\N{EN DASH}\N{FIGURE DASH}\N{NON-BREAKING HYPHEN}﹣－", "-"),
    **dict.fromkeys("∕⁄／", "/"),
    **dict.fromkeys("×✕✖⨯", r"\times "),
    **dict.fromkeys("·⋅∙•∗", r"\cdot "),
    **dict.fromkeys("°˚º", r"^\circ "),
    **dict.fromkeys("∅⌀", r"\emptyset "),
    **dict.fromkeys("≤⩽", r"\leq "),
    **dict.fromkeys("≥⩾", r"\geq "),
    "÷": r"\div ",
    "π": r"\pi ",
    "∞": r"\infty ",
    "≠": r"\neq ",
    "≈": r"\approx ",
    "±": r"\pm ",
    "∪": r"\cup ",
    "∩": r"\cap ",
    "∈": r"\in ",
    "ℝ": r"\mathbb{R}",
    "ℤ": r"\mathbb{Z}",
    "ℕ": r"\mathbb{N}",
    "ℚ": r"\mathbb{Q}",
    "ℂ": r"\mathbb{C}",
    "％": r"\%",
    "。": ".",
    "，": ", ",
    "、": ", ",
}
_SYMBOL = re.compile("|".join(map(re.escape, _SYMBOLS)))
_BLANKS = re.compile(
    r"(?<!\\)\\[,:;!> ]|\\q?quad(?![A-Za-z])|\\(?:thin|med|thick|en)space(?![A-Za-z])|~|\s+"
)
_LAYOUT = re.compile(
    r"\\m?(?:left|right|middle)(?![A-Za-z])\s*\.?|\\[bB]igg?[lrm]?(?![A-Za-z])"
    r"|\\(?:displaystyle|textstyle|scriptstyle|limits|nolimits|boldmath|bf|rm|it|sf|tt|centering"
    r"|large|Large|LARGE|huge|Huge|small|hfill|nobreak|null|strut|mathstrut)(?![A-Za-z])"
    r"|\\color\s*(?:\[\w+\])?\s*\{[^{}]*\}|\\(?:tag|label|hspace|vspace|[hv]?phantom)\*?\s*\{[^{}]*\}"
    r"|\\phantom(?=-)|\\$"
)
_DELIMITERS = re.compile(r"(?<!\\)\$|\\[()\[\]](?![a-z])|\*\*")
_MONEY = re.compile(
    r"\\?[$€£¥₹]|\\(?:pounds|euro|yen)(?![A-Za-z])|\b(?:USD|US\\?\$|Rs\.?)\s?(?=\d)"
)
_SHOWN_ARGUMENT = re.compile(
    r"\\(?:boxed|fbox|framebox|underline|uuline|mathbf|mathit|mathsf|mathtt|mathnormal|boldsymbol|bm"
    r"|pmb|emph|ensuremath|smash|textstyle|mathop|mathord)(?![A-Za-z])\s*(?=\{)"
)
_COLOURED = re.compile(r"\\(?:textcolor|colorbox|fcolorbox)\s*(?:\{[^{}]*\})+?\s*(?=\{)")
_WORDS = re.compile(
    r"\\(?:text(?:normal|bf|it|rm|sf|tt|up|sc|md)?|mbox|hbox|mathrm|textnormal)\s*(?=\{)"
    r"|(?<=\d)normal(?=\{)"
)
_THOUSANDS = re.compile(
    r"(?<![\d.,])(?<!\d[ ])(?P<sign>-?)(?P<digits>\d{1,3}(?P<mark>,|\{,\}|\{\\,\}|'|_)\d{3}"
    r"(?:(?P=mark)\d{3})*)(?![\d_']|,\d)"
)
_SPACED_THOUSANDS = re.compile(r"(?<![\d.,])\d{1,3}(?: \d{3})+(?! ?[\d/])")
_SCIENTIFIC = re.compile(r"(?<![\w\\.}])(\d+(?:\.\d*)?|\.\d+)[eE]([-+]?\d{1,3})(?![\w.^])")
_MIXED = re.compile(r"(?<![\d.^/_}])(\d+) (\d+) ?/ ?(\d+)(?![\d./])")
_REPEATING = re.compile(r"(\d*)\.(\d*)\\(?:overline|bar|dot|widebar)\s*(?:\{(\d+)\}|(\d))")
_ROOT_SIGN = re.compile(
    r"([√∛∜])\s*(?:\{([^{}]*)\}|\(([^()]*)\)|(\d+(?:\.\d+)?|[A-Za-z]|\\[a-z]+))"
)
_ROOTS = {"√": r"\sqrt", "∛": r"\sqrt[3]", "∜": r"\sqrt[4]"}
_TRAILING = re.compile(r"(?:\s|\\\\|[.,;:。]|(?<=[\s.,;:])!)+$")


def normalised(text: str) -> str:
    r"""Rewrites an answer in the LaTeX that math-verify reads.

    The value stays the same: 12\,345 becomes 12345, 1.2e5 becomes 120000, 3 1/2 becomes
    3\frac{1}{2}, ½ becomes \frac{1}{2}; layout, colours, dollars, delimiters and punctuation at
    the end go. Units and words stay, see `units`.

    Args:
        text: LaTeX, plain text with or without Unicode's symbols, or both.
    """
    text = re.sub(r"(?:\\\\\s*)+$", "", _plain_symbols(text))
    text = re.sub(r"(?<=[\w)}])\*\*(?=[\w({-])", "^", text)
    text = re.sub(r"\\mathrm ?\{([eid])\}", r"\1", text)
    # What a common normaliser of datasets makes of \frac\pi2.
    text = re.sub(r"\\frac\{\\\}\{([a-z])\}([a-z]+)", r"\\frac\\\1\2 ", text)
    text = re.sub(r"(?<![A-Za-z}\]])\{(\w*)\}(?= ?_|(?<=,\{\}))", r"\1", text)
    text = re.sub(r"\\text\{([0-9A-Z]+)\}(?= ?_)", r"\1", text)
    text = re.sub(r"(?<=\d)(?:\\,|\\!,\\!|\\!,|,\\!|\{,\}|\\;|\\:)(?=\d{3}(?!\d))", "{,}", text)
    for pattern, replacement in (
        (_LAYOUT, " "),
        (_COLOURED, ""),
        (_SHOWN_ARGUMENT, ""),
        (_WORDS, r"\\text"),
        (_MONEY, ""),
        (_DELIMITERS, ""),
    ):
        text = pattern.sub(replacement, text)
    text = _without_outer_braces(_BLANKS.sub(" ", text))
    text = _joined_words(text)
    text = _matrix_rows(text)
    for pattern, replace in _NUMBERS:
        text = pattern.sub(replace, text)
    text = _named(text)
    text = _braced_arguments(text)
    return _trimmed(text)


def exact_decimal(text: str) -> str:
    """A number as `repr` or a file writes it (1e-05, 6.02E23, 1_000), in full digits.

    Raises:
        decimal.InvalidOperation: It is no number.
    """
    return format(Decimal(text), "f")


def _plain_symbols(text: str) -> str:
    text = re.sub("[⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻⁽⁾ⁿ]+", lambda m: f"^{{{m[0].translate(_SUPERSCRIPTS)}}}", text)
    text = re.sub("[₀₁₂₃₄₅₆₇₈₉]+", lambda m: f"_{{{m[0].translate(_SUBSCRIPTS)}}}", text)
    text = _ROOT_SIGN.sub(
        lambda m: f"{_ROOTS[m[1]]}{{{next(g for g in m.groups()[1:] if g is not None)}}}", text
    )
    text = "".join(_vulgar_fraction(letter) for letter in text)
    text = _SYMBOL.sub(lambda match: _SYMBOLS[match[0]], text)
    return unicodedata.normalize("NFKC", text)


def _vulgar_fraction(letter: str) -> str:
    if not unicodedata.decomposition(letter).startswith("<fraction>"):
        return letter
    upper, _, lower = unicodedata.normalize("NFKC", letter).partition("\N{FRACTION SLASH}")
    return f"\\frac{{{upper}}}{{{lower}}}"


def _without_outer_braces(text: str) -> str:
    text = text.strip()
    while text.startswith("{") and closing_brace(text, 0) == len(text) - 1:
        text = text[1:-1].strip()
    return text


def _joined_words(text: str) -> str:
    r"""`and` and `or` between answers become commas, \text{18} becomes 18."""
    text = re.sub(r",? ?(?:\\text ?)?\{ ?(?:and|or) ?\} ?", ", ", text)
    parts = re.split(r"(\\text ?\{[^{}]*\})", text)
    parts[::2] = [re.sub(r",? (?:and|or) ", ", ", part) for part in parts[::2]]
    text = re.sub(r"\\text ?\{ ?\}", " ", "".join(parts))
    text = re.sub(r"\\text ?\{ ?\(?(-?\d[\d.,/]*?)\)?[.,;:]* ?\}", r"\1", text)
    text = re.sub(r"\\text ?\{ ?(-?\d[\d.,/]*)( [^{}]+)\}", r"\1\\text{\2}", text)
    text = re.sub(r"\\text ?\{([^{}]*=[^{}]*)\}", r"\1", text)
    # The dataset's own spelling of words that lost their command.
    return re.sub(r"(?<![\\\w}\]])\{([A-Za-z][A-Za-z ,]+\d*)\}", r"\\text{\1}", text)


def _matrix_rows(text: str) -> str:
    """Rows that are divided by one backslash, after one was lost on the way."""
    if r"\begin{" not in text:
        return text
    return re.sub(r"(?<!\\)\\(?=[-\d&])", r"\\\\", text)


def _from_repeating(match: re.Match[str]) -> str:
    whole, fixed, repeated = match[1] or "0", match[2], match[3] or match[4]
    scale = 10 ** len(fixed)
    value = Fraction(int(whole + fixed), scale)
    value += Fraction(int(repeated), scale * (10 ** len(repeated) - 1))
    return f"\\frac{{{value.numerator}}}{{{value.denominator}}}"


def _from_scientific(match: re.Match[str]) -> str:
    if abs(int(match[2])) > LARGEST_EXPONENT:
        return f"{match[1]} \\times 10^{{{int(match[2])}}}"
    return exact_decimal(match[0])


def _only_digits(match: re.Match[str]) -> str:
    return match.groupdict().get("sign", "") + re.sub(r"\D", "", match[0])


_NUMBERS: tuple[tuple[re.Pattern[str], str | Callable[[re.Match[str]], str]], ...] = (
    (_REPEATING, _from_repeating),
    (_SPACED_THOUSANDS, _only_digits),
    (re.compile(r"(?<=\d) ?[xX] ?(?=10 ?\^)"), r"\\times "),
    (_SCIENTIFIC, _from_scientific),
    (_MIXED, r"\1\\frac{\2}{\3}"),
    (re.compile(r"(?<![\d\w}])\.(?=\d)"), "0."),
    (re.compile(r"(?<=\d)\.(?=\s|$|[^\d\s\\])(?!\d)"), ""),
)


def _top_level_thousands(text: str) -> str:
    """1,234 is a number where no brackets make it a pair."""
    outside: list[str] = []
    inside: list[str] = []
    for part in re.split(r"(\\[{}]|[()\[\]])", text):
        if part in (r"\{", "(", "["):
            inside.append(part)
        elif part in (r"\}", ")", "]") and inside:
            inside.pop()
        elif not inside:
            part = _THOUSANDS.sub(_only_digits, part)
        outside.append(part)
    return "".join(outside)


def _named(text: str) -> str:
    for pattern, replacement in (
        (r"\\(?:varnothing|O)(?![A-Za-z])|\\\{ ?\\\}", r"\\emptyset "),
        (r"\\(?:d|t|c|s)frac(?![A-Za-z])|\\nicefrac(?![A-Za-z])", r"\\frac"),
        (r"\\(?:le|leqslant|leqq)(?![A-Za-z])", r"\\leq "),
        (r"\\(?:ge|geqslant|geqq)(?![A-Za-z])", r"\\geq "),
        (r"\\ne(?![A-Za-z])", r"\\neq "),
        (r"\\degree(?![A-Za-z])|\^ ?\{ ?\\circ ?\}", r"^\\circ "),
        (r"<=", r"\\leq "),
        (r">=", r"\\geq "),
        (r"!=(?!=)", r"\\neq "),
        (r"(?<![A-Za-z\\])[pP]i(?![A-Za-z])", r"\\pi "),
        (r"(?<![A-Za-z\\])(?:infinity|inf|oo)(?![A-Za-z])", r"\\infty "),
        (r"(?<![A-Za-z\\])sqrt(?=[ ({\d])", r"\\sqrt"),
        (r" ?\\text ?\{ ?(?:percent(?:age)?|pct) ?\}", r"\\%"),
        (r" ?(?<![A-Za-z\\])(?:percent(?:age)?|pct)(?![A-Za-z])", r"\\%"),
        (r"(?<!\\)%", r"\\%"),
        (r"\((\d+)\) ?_", r"\1_"),
        (r"^(?:=|\\approx|≈|\\text\{ ?=? ?\}) ?", ""),
    ):
        text = re.sub(pattern, replacement, text)
    return _top_level_thousands(text.replace("{,}", ","))


def _braced_arguments(text: str) -> str:
    r"""\frac12, \sqrt2, sqrt(2) and x^(2) with braces around every argument."""
    text = re.sub(r"\\(sqrt) ?\(", r"\\\1(", text)
    text = re.sub(r"\^ ?\(", "^(", text)
    for opener in (r"\sqrt(", "^("):
        text = _braces_for_brackets(text, opener)
    text = re.sub(r"\^ ?([-+]\d+)", r"^{\1}", text)
    token = r"(\\[A-Za-z]+|[A-Za-z0-9])"
    group = r"(\{(?:[^{}]|\{(?:[^{}]|\{[^{}]*\})*\})*\})"
    text = re.sub(rf"\\frac ?{token} ?{token}", r"\\frac{\1}{\2}", text)
    text = re.sub(rf"\\frac ?{group} ?{token}", r"\\frac\1{\2}", text)
    text = re.sub(rf"\\frac ?{token} ?{group}", r"\\frac{\1}\2", text)
    text = re.sub(rf"\\sqrt ?{token}", r"\\sqrt{\1}", text)
    text = re.sub(r"\{([^{}]+?) ?\\over(?![A-Za-z]) ?([^{}]+)\}", r"\\frac{\1}{\2}", text)
    text = re.sub(r"^([^{}]+?) ?\\over(?![A-Za-z]) ?([^{}]+)$", r"\\frac{\1}{\2}", text)
    return re.sub(r"\\log ?_ ?([A-Za-z0-9]) ?(?=[\w\\])", r"\\log_{\1} ", text)


def _braces_for_brackets(text: str, opener: str) -> str:
    position = 0
    while (start := text.find(opener, position)) >= 0:
        opening = start + len(opener) - 1
        depth = 0
        for index in range(opening, len(text)):
            depth += {"(": 1, ")": -1}.get(text[index], 0)
            if depth == 0:
                inner = text[opening + 1 : index]
                text = f"{text[:opening]}{{{inner}}}{text[index + 1 :]}"
                break
        position = opening + 1
    return text


def _trimmed(text: str) -> str:
    text = re.sub(r" +", " ", text).strip()
    text = re.sub(r"(\\text ?\{[^{}]*?)[\s.,;:!]+\}$", r"\1}", text)
    text = _TRAILING.sub("", text).lstrip(" ,;:")
    return _without_outer_braces(text)
