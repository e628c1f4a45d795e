r"""What stands around a value: 12 of `12\text{ cm}`, `(C)\ 12` and `\text{The answer is }12`."""

from __future__ import annotations

import re
from dataclasses import dataclass

_NAMES = {
    "mm": "mm millimeter millimeters millimetre millimetres",
    "cm": "cm cms centimeter centimeters centimetre centimetres",
    "m": "m meter meters metre metres",
    "km": "km kms kilometer kilometers kilometre kilometres",
    "in": "in inch inches",
    "ft": "ft feet foot",
    "yd": "yd yds yard yards",
    "mi": "mi mile miles",
    "mg": "mg milligram milligrams",
    "g": "g gm gram grams",
    "kg": "kg kgs kilogram kilograms",
    "lb": "lb lbs pound pounds",
    "oz": "oz ounce ounces",
    "ml": "ml milliliter milliliters millilitre millilitres",
    "l": "l L liter liters litre litres",
    "gal": "gal gallon gallons",
    "ms": "ms millisecond milliseconds",
    "s": "s sec secs second seconds",
    "min": "min mins minute minutes",
    "h": "h hr hrs hour hours",
    "day": "day days",
    "week": "week weeks",
    "month": "month months",
    "year": "yr yrs year years",
    "cent": "cent cents",
    "dollar": "dollar dollars buck bucks",
    "degree": "degree degrees deg",
    "radian": "rad radian radians",
    "km/h": "kmh kph kmph",
    "mi/h": "mph",
    "am": "am",
    "pm": "pm",
    "N": "N newton newtons",
    "J": "J joule joules",
    "W": "W watt watts",
    "V": "V volt volts",
}
_UNITS = {name: unit for unit, names in _NAMES.items() for name in names.split()}
_NO_UNITS = re.compile(
    r"(?:arc)?(?:sin|cos|tan)h?|cot|csc|log|ln|lg|exp|sqrt|mod|max|gcd|lcm|and|or|if|for|where"
    r"|with|is|are|not|frac|pi"
)
_POWERS = {"square": "2", "sq": "2", "squared": "2", "cubic": "3", "cu": "3", "cubed": "3"}

_NUMERIC = re.compile(
    r"(?:[A-Za-z](?:_\{?\w+\}?)? ?= ?)?[-+]?(?=[\d\\({.])"
    r"(?:[\d., */^(){}]|(?<=[{^])-|\\(?:frac|times|cdot|div|sqrt)(?![A-Za-z]))*[\d)}]!?"
)
"""One number, perhaps with its name (x = 5); only after one does a plain word count as a unit."""
_IN_BASE = re.compile(r"(-?[0-9A-Z.]+?) ?(_ ?(?:\{ ?\d+ ?\}|\d+)|_ ?\\text ?\{[^{}]*\})")
_POWER = r"(?: ?\^ ?(?:-?\d|\{ ?-?\d ?\}))?"
_TEXT_UNIT = re.compile(rf"(?:\\text ?\{{[^{{}}]*\}}{_POWER}[ ./]*)+\.?$")
_WORD = rf"[A-Za-z]+\.?{_POWER}"
_PLAIN_UNIT = re.compile(rf"(?P<blank> ?){_WORD}(?:(?: |-| ?/ ?| ?\\cdot ?){_WORD})*$")
_DEGREES = re.compile(r" ?\^ ?(?:\\circ|\{ ?\\circ ?\})(?: ?(?:\\text ?\{ ?)?[CF](?: ?\})?)?$")
_AFTER_OPERATOR = re.compile(
    r"(?:[-+*/^_=(,<>|&]|\\(?:cdot|times|div|pm|frac|sqrt|leq|geq|neq|in))$"
)
_CHOICE = re.compile(
    r"^(?:\\text ?\{ ?)?(?:\((?P<round>[A-Za-z])\)|(?P<plain>[A-J])[).:])(?: ?\})? ?(?P<rest>.*)$"
)
_TEXT_CHOICE = re.compile(r"^\\text ?\{ ?\((?P<round>[A-J])\) ?(?P<rest>[^{}]+)\}$")
_PROSE = re.compile(r"^(?:\\text ?\{[^{}]*\} ?)+(?:[:=] ?)?(?=[-+\d\\(.A-Za-z])")


@dataclass(frozen=True)
class Value:
    """An answer apart from what stands around it."""

    text: str
    """Without choice, prose and unit."""
    unit: str | None = None
    """As written, the base of a number (_8) too; None: there is none."""
    choice: str | None = None
    """Letter of a multiple-choice option before the value."""


def value_of(text: str, *, letters: bool) -> Value:
    r"""Takes an answer apart.

    Units are removed after numbers only: `5 m` has one, `x + t`, `\pi r^2 h` and `v t` have none.
    What stands in \text{} behind a value is a unit or a remark.

    Args:
        text: Normalised, see `spelling.normalised`.
        letters: Single plain letters after a number (5 m, 3h) may be units. They may as well be
            names, so that a ground truth keeps them.
    """
    choice, text = _split_choice(text)
    prose = _PROSE.match(text)
    if prose and prose.end() < len(text) and not _AFTER_OPERATOR.search(text[prose.end() :]):
        text = text[prose.end() :]
    value, unit = _split_unit(text, letters)
    return Value(value, unit, choice)


def same_unit(first: str, second: str) -> bool:
    """Whether two units may be the same one: unless both are known and differ."""
    one, other = _canonical(first), _canonical(second)
    return one is None or other is None or one == other


def _split_choice(text: str) -> tuple[str | None, str]:
    found = _TEXT_CHOICE.match(text) or _CHOICE.match(text)
    if found is None:
        return None, text
    # Letters in \text{} are always round: the first pattern has no group `plain`.
    groups = found.groupdict(default="")
    letter = (groups["round"] or groups["plain"]).upper()
    rest = groups["rest"].strip()
    # f(x), (a)(b) and (x)^2 are no options.
    if re.match(r"[-+*/^_=(,)]", rest) and not re.match(r"-\d|\(", rest):
        return None, text
    if groups["round"].islower() and rest:
        return None, text
    return letter, rest


def _split_unit(text: str, letters: bool) -> tuple[str, str | None]:
    if found := _IN_BASE.fullmatch(text):
        digits = found[1]
        return (f"\\text{{{digits}}}" if re.search("[A-Z]", digits) else digits), found[2]
    if found := _DEGREES.search(text):
        return _if_value(text, found.start(), found[0])
    if found := _TEXT_UNIT.search(text):
        return _if_value(text, found.start(), found[0])
    number = _NUMERIC.match(text)
    if number is None or number.end() == len(text):
        return text, None
    found = _PLAIN_UNIT.match(text, number.end())
    if found is None:
        return text, None
    words = re.findall(r"[A-Za-z]+", found[0])
    if any(_NO_UNITS.fullmatch(word) for word in words):
        return text, None
    known = [word in _UNITS or word.lower() in _UNITS for word in words]
    if len(found[0].strip()) == 1:
        is_unit = letters and known[0]
    elif found["blank"]:
        is_unit = known[0] or len(words[0]) >= 3 or words[0].lower() in _POWERS
    else:
        is_unit = all(known) and (letters or len(words[0]) > 1)
    return (number[0].strip(), found[0].strip()) if is_unit else (text, None)


def _if_value(text: str, start: int, unit: str) -> tuple[str, str | None]:
    value = text[:start].strip()
    if not value or _AFTER_OPERATOR.search(value):
        return text, None
    return value, unit.strip()


def _canonical(unit: str) -> str | None:
    """In one spelling, e.g. cm^2, km/h or _8; None: not a known unit."""
    if unit.startswith("_"):
        return re.sub(r"[ {}]", "", unit)
    if r"\circ" in unit:
        return "degree"
    text = re.sub(r"\\text ?\{|[{}.\\]", " ", unit).replace("^ ", "^")
    parts: list[str] = []
    power = ""
    for word in re.findall(r"[A-Za-z]+|\^ ?-?\d|/", text):
        if word.startswith("^"):
            if not parts:
                return None
            parts[-1] += "^" + word[-1]
        elif word.lower() in _POWERS:
            if parts and word.lower().endswith("ed"):
                parts[-1] += f"^{_POWERS[word.lower()]}"
            else:
                power = _POWERS[word.lower()]
        elif word in ("/", "per"):
            parts.append("/")
        else:
            known = _UNITS.get(word) or _UNITS.get(word.lower())
            if known is None:
                return None
            parts.append(known + (f"^{power}" if power else ""))
            power = ""
    return "".join(parts) or None
