"""Values of Python as JSON, so that they cross from one process to another without code.

Plain data arrives as it was, of the plain type: `[1, (2,), {3: 4}]` is
`[1, {"tuple": [2]}, {"dict": [[3, 4]]}]`. An object of another kind stays where it is and arrives
as a number that stands for it.
"""

from __future__ import annotations

import itertools
import json
import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from decimal import Decimal
from fractions import Fraction
from typing import Any

LONGEST_ITERATOR = 1_000_000
"""Items of a generator that are taken."""
_SMALL = 2**53
"""Integers up to it are numbers in JSON; to write larger ones in decimals would take time that is
quadratic in their length."""

_KINDS: dict[str, Any] = {
    "tuple": tuple,
    "set": set,
    "frozenset": frozenset,
    "deque": deque,
}
_TYPES: dict[str, type] = {
    each.__name__: each
    for each in (bool, int, float, complex, str, bytes, list, tuple, dict, set, frozenset)
}
_TEXTS: dict[str, Callable[[str], Any]] = {
    "int": lambda text: int(text, 16),
    "float": float,
    "bytes": bytes.fromhex,
    "complex": complex,
    "decimal": Decimal,
    # Not from "1e999999999", which would take for ever.
    "fraction": lambda text: Fraction(*map(int, text.split("/"))),
}


def encoded(value: Any, keep: Callable[[Any], int]) -> str:
    """A value as JSON.

    Args:
        value: Anything.
        keep: Takes an object that is no plain data, and gives the number that stands for it.
    """
    return json.dumps(_tagged(value, keep))


def decoded(text: str | bytes, find: Callable[[int], Any]) -> Any:
    """The value of what `encoded` wrote, whoever says that it did.

    Args:
        text: JSON.
        find: What a number stands for.

    Raises:
        ValueError: It is nothing that `encoded` writes.
    """
    try:
        return _plain(json.loads(text), find)
    except (TypeError, LookupError, ArithmeticError, RecursionError) as error:
        raise ValueError(f"no value: {type(error).__name__}") from None


def _tagged(value: Any, keep: Callable[[Any], int]) -> Any:
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, int):
        value = int(value)  # Of a subclass, too.
        return value if -_SMALL <= value <= _SMALL else {"int": hex(value)}
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else {"float": repr(float(value))}
    if isinstance(value, str):
        return str(value)
    found = _items(value)
    if found is None:
        return _of_others(value, keep)
    name, items = found
    tagged = [_tagged(each, keep) for each in items]
    return tagged if name == "list" else {name: tagged}


def _items(value: Any) -> tuple[str, Iterable[Any]] | None:
    """What holds other values: its kind, and what it holds."""
    if isinstance(value, dict):
        return "dict", [list(pair) for pair in value.items()]
    if isinstance(value, range):
        return "range", (value.start, value.stop, value.step)
    if isinstance(value, Iterator):
        return "iterator", itertools.islice(value, LONGEST_ITERATOR)
    if isinstance(value, list):
        return "list", value
    return next(((name, value) for name, kind in _KINDS.items() if isinstance(value, kind)), None)


def _of_others(value: Any, keep: Callable[[Any], int]) -> Any:
    if isinstance(value, (bytes, bytearray)):
        return {"bytes": bytes(value).hex()}
    if isinstance(value, (complex, Decimal, Fraction)):
        return {type(value).__name__.lower(): str(value)}
    for name, each in _TYPES.items():
        if value is each:
            return {"type": name}
    if hasattr(type(value), "tolist"):  # An array or scalar of numpy.
        return _tagged(value.tolist(), keep)
    return {"object": keep(value)}


def _plain(value: Any, find: Callable[[int], Any]) -> Any:
    if isinstance(value, list):
        return [_plain(each, find) for each in value]
    if not isinstance(value, dict):
        return value
    [(kind, inner)] = value.items()
    if kind in _TEXTS and isinstance(inner, str):
        return _TEXTS[kind](inner)
    if kind == "type":
        return _TYPES[inner]
    if kind == "object":
        return find(inner)
    items = [_plain(each, find) for each in inner]
    if kind == "dict":
        return dict(items)
    if kind == "range":
        return range(*items)
    return iter(items) if kind == "iterator" else _KINDS[kind](items)
