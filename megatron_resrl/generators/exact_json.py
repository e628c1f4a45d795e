"""JSON that gives tuples, sets and keys that are no texts back as they were."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

_TUPLE, _SET, _PAIRS = "__tuple__", "__set__", "__pairs__"
_MARKS = {_TUPLE: tuple, _SET: set, _PAIRS: dict}
"""The only key of an object that stands for something else -> what it stands for."""


def to_json(value: Any) -> str:
    """JSON text of plain values; arrays and scalars of numpy become lists and numbers.

    Raises:
        TypeError: A value has no such form.
    """
    return json.dumps(_marked(value), ensure_ascii=False, sort_keys=False)


def from_json(text: str) -> Any:
    """What `to_json` wrote, or any other JSON.

    Raises:
        ValueError: It is no JSON.
    """
    return restored(json.loads(text))


def restored(value: Any) -> Any:
    """Parsed JSON with the marks of `to_json` put in force."""
    if isinstance(value, list):
        return [restored(each) for each in value]
    if not isinstance(value, dict):
        return value
    if len(value) == 1 and (mark := next(iter(value))) in _MARKS:
        return _MARKS[mark](restored(value[mark]))
    return {key: restored(each) for key, each in value.items()}


def _marked(value: Any) -> Any:
    if isinstance(value, Mapping):
        if all(isinstance(key, str) for key in value) and not value.keys() & _MARKS.keys():
            return {key: _marked(each) for key, each in value.items()}
        return {_PAIRS: [[_marked(key), _marked(each)] for key, each in value.items()]}
    if isinstance(value, tuple):
        return {_TUPLE: [_marked(each) for each in value]}
    if isinstance(value, (set, frozenset)):
        return {_SET: sorted(map(_marked, value), key=repr)}
    if isinstance(value, list):
        return [_marked(each) for each in value]
    if value is None or isinstance(value, (str, int, float)):
        return value
    if hasattr(value, "tolist"):  # An array or scalar of numpy, without importing it here.
        return _marked(value.tolist())
    raise TypeError(f"{type(value).__name__} has no JSON")
