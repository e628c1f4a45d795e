"""Whether a call is one that a ground truth accepts, by the rules of BFCL's check of syntax trees.

Source: https://github.com/ShishirPatil/gorilla, bfcl_eval/eval_checker/ast_eval/ast_checker.py
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from megatron_resrl.rewards.tool_calls import Call

TYPES: dict[str, type] = {
    **dict.fromkeys(("string", "str", "any"), str),
    **dict.fromkeys(("integer", "int"), int),
    **dict.fromkeys(("float", "number", "double"), float),
    **dict.fromkeys(("boolean", "bool"), bool),
    **dict.fromkeys(("array", "list", "tuple"), list),
    **dict.fromkeys(("dict", "object"), dict),
}
"""Name of a type in a schema -> the type of a value."""

LEFT_OUT = ""
"""Among the accepted values: the parameter may be left out."""
_IGNORED = re.compile(r"[ ,./\-_*^]")


@dataclass(frozen=True)
class Schema:
    """What a function takes."""

    properties: Mapping[str, Mapping[str, Any]]
    """Parameter -> its JSON schema: `type`, and of lists that of `items`."""
    required: Sequence[str] = ()


@dataclass(frozen=True)
class Accepted:
    """One call that has to be made."""

    name: str
    values: Mapping[str, Sequence[Any]]
    """Parameter -> the values that are right; `LEFT_OUT` among them: it may be left out."""
    schema: Schema | None = None
    """None: types are those of the values."""


def all_match(calls: Sequence[Call], accepted: Sequence[Accepted]) -> bool:
    """Whether each call is one of the accepted, in any order, and none is missing."""
    if len(calls) != len(accepted):
        return False
    fits = [[place for place, each in enumerate(accepted) if matches(call, each)] for call in calls]
    taken: dict[int, int] = {}
    return all(_assigned(call, fits, taken, set()) for call in range(len(calls)))


def matches(call: Call, accepted: Accepted) -> bool:
    """Whether a call has the right function and arguments."""
    schema = accepted.schema
    if call.name != accepted.name:
        return False
    if schema is not None and any(name not in call.arguments for name in schema.required):
        return False
    for name, value in call.arguments.items():
        if name not in accepted.values or (schema is not None and name not in schema.properties):
            return False
        kind = schema.properties[name] if schema is not None else None
        if not _right_value(value, accepted.values[name], kind):
            return False
    return all(
        LEFT_OUT in values for name, values in accepted.values.items() if name not in call.arguments
    )


def _assigned(call: int, fits: list[list[int]], taken: dict[int, int], tried: set[int]) -> bool:
    """Gives a call one of the places that it fits, moving others where that helps (Kuhn)."""
    for place in fits[call]:
        if place in tried:
            continue
        tried.add(place)
        if place not in taken or _assigned(taken[place], fits, taken, tried):
            taken[place] = call
            return True
    return False


def _right_value(value: Any, right: Sequence[Any], kind: Mapping[str, Any] | None) -> bool:
    given = [each for each in right if not _is_left_out(each)]
    wanted = _type_of(kind)
    if kind is None or wanted is None:
        return any(_right_of_type(value, [each], type(each), None) for each in given)
    if kind["type"] == "tuple" and isinstance(value, tuple):
        value = list(value)
    if given and type(given[0]) is not wanted:
        # What is right is the name of a variable, or of another type than the schema says.
        value = float(value) if wanted is float and type(value) is int else value
        return type(value) in (wanted, type(given[0])) and value in right
    return _right_of_type(value, right, wanted, _type_of(kind.get("items")))


def _right_of_type(value: Any, right: Sequence[Any], wanted: type, inner: type | None) -> bool:
    """Whether a value has the right type, an integer for a float too, and is a right one."""
    if wanted is float and type(value) is int:
        value = float(value)
    return type(value) is wanted and _equal_value(value, right, inner)


def _equal_value(value: Any, right: Sequence[Any], inner: type | None) -> bool:
    """Whether a value of the right type is one of the right ones."""
    if isinstance(value, str):
        return _plain(value) in [_plain(each) for each in right if isinstance(each, str)]
    if isinstance(value, dict):
        return any(_same_fields(value, each) for each in right if isinstance(each, Mapping))
    if isinstance(value, list):
        if not value and LEFT_OUT in right:
            return True
        return any(_same_items(value, each, inner) for each in right if isinstance(each, list))
    return value in right


def _same_items(value: list[Any], right: list[Any], inner: type | None) -> bool:
    if len(value) != len(right):
        return False
    if inner is dict and all(isinstance(each, Mapping) for each in right):
        pairs = zip(value, right, strict=True)
        return all(isinstance(one, dict) and _same_fields(one, other) for one, other in pairs)
    if inner is not None and not all(type(item) in (inner, type(right[0])) for item in value):
        return False
    return [_plain(each) for each in value] == [_plain(each) for each in right]


def _same_fields(value: Mapping[str, Any], right: Mapping[str, Any]) -> bool:
    """Whether an object has the right fields, each with one of its right values."""
    for key, item in value.items():
        options = right.get(key)
        if not isinstance(options, list) or not _is_among(item, options):
            return False
    return all(
        key in value or (isinstance(options, list) and LEFT_OUT in options)
        for key, options in right.items()
    )


def _is_among(item: Any, options: list[Any]) -> bool:
    if _plain(item) in [_plain(each) for each in options]:
        return True
    nested = [each for each in options if isinstance(each, Mapping)]
    return isinstance(item, dict) and any(_same_fields(item, each) for each in nested)


def _plain(value: Any) -> Any:
    """Texts without what BFCL does not look at: case, blanks, and , . / - _ * ^."""
    if not isinstance(value, str):
        return value
    return _IGNORED.sub("", value).lower().replace("'", '"')


def _is_left_out(value: Any) -> bool:
    return isinstance(value, str) and value == LEFT_OUT


def _type_of(kind: Any) -> type | None:
    return TYPES.get(kind.get("type", "")) if isinstance(kind, Mapping) else None
