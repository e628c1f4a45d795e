"""Dataclasses from what `dataclasses.asdict` and JSON made of them."""

from __future__ import annotations

import dataclasses
import types
import typing
from typing import Any, TypeVar

Record = TypeVar("Record")


def restored(kind: type[Record], value: Any) -> Record:
    """A dataclass, with the dataclasses, tuples and dictionaries within it.

    Args:
        kind: The dataclass.
        value: `json.loads(json.dumps(dataclasses.asdict(record)))`.
    """
    return typing.cast(Record, _restored(kind, value))


def _restored(kind: Any, value: Any) -> Any:
    arguments = typing.get_args(kind)
    origin = typing.get_origin(kind)
    if value is None:
        return None
    if origin in (typing.Union, types.UnionType):
        return _restored(next(each for each in arguments if each is not type(None)), value)
    if dataclasses.is_dataclass(kind):
        hints = typing.get_type_hints(kind)
        return typing.cast(Any, kind)(
            **{name: _restored(hints[name], each) for name, each in value.items()}
        )
    if origin is list:
        return [_restored(arguments[0], each) for each in value]
    if origin is tuple:
        return tuple(_restored(each, part) for each, part in zip(arguments, value, strict=True))
    if origin is dict:  # JSON has turned the keys into text.
        return {arguments[0](key): _restored(arguments[1], each) for key, each in value.items()}
    return value
