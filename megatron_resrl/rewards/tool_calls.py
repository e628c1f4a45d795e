"""Calls of functions as models write them: tagged JSON, a JSON list, Python calls."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

_THOUGHTS = re.compile(r".*</think>", re.DOTALL)
_OPENED, _CLOSED = "<tool_call>", "</tool_call>"
_FENCED = re.compile(r"```[a-z_]*\s*\n(.*?)\n?```", re.DOTALL)
LONGEST = 10_000
"""Characters of Python calls; its parser takes time quadratic in the length of broken ones."""


class BrokenCall(ValueError):
    """A response that begins to call functions and does not do it right."""


@dataclass(frozen=True)
class Call:
    """One call of a function, by name."""

    name: str
    arguments: dict[str, Any]


def read_calls(response: str) -> list[Call]:
    """The calls that a response makes, in its order.

    What stands up to the last `</think>` is left out. Behind it, calls are

    1. JSON in `<tool_call></tool_call>` (Hermes, Qwen): one call, one on each line, or a list; or
    2. the whole text, or else its last fenced block, as JSON of a call or of a list of calls; or
    3. the same as Python calls with named arguments: `[f(a=1), g(b="x")]`, or one of them.

    A call of JSON is an object with `name` and with `arguments` (or `parameters`), also as text of
    JSON, or one whose `function` is such an object (OpenAI). In Python calls, a name in place of a
    value is a text, and so is a call; what computes is none.

    Args:
        response: Decoded text.

    Returns:
        The calls; none if the response is no attempt to call anything.

    Raises:
        BrokenCall: It is an attempt, and cannot be read.
    """
    text = _THOUGHTS.sub("", response).strip()
    if _OPENED in text or _CLOSED in text:
        return list(_tagged(text))
    blocks = _FENCED.findall(text)
    for candidate in (text, *blocks[-1:]):
        calls = _json_calls(candidate)
        if calls is None:
            calls = _python_calls(candidate)
        if calls is not None:
            return calls
    if text.startswith(("[", "{")):
        raise BrokenCall("neither JSON nor Python")
    return []


def calls_of(value: Any) -> list[Call] | None:
    """The calls that JSON stands for: an object or a list of them; None: it is something else."""
    found = [_call_of(each) for each in (value if isinstance(value, list) else [value])]
    calls = [each for each in found if each is not None]
    return calls if len(calls) == len(found) else None


def _tagged(text: str) -> Iterator[Call]:
    for part in text.split(_OPENED)[1:]:
        content, closed, _ = part.partition(_CLOSED)
        if not closed:
            raise BrokenCall("a call is never closed")
        calls = _json_calls(content.strip())
        if calls is None:
            lines = [_json_calls(line) for line in content.strip().splitlines()]
            if not lines or None in lines:
                raise BrokenCall("a call is no JSON of a call")
            calls = [call for line in lines if line for call in line]
        yield from calls
    if text.count(_CLOSED) != text.count(_OPENED):
        raise BrokenCall("a call is closed that was never opened")


def _json_calls(text: str) -> list[Call] | None:
    try:
        return calls_of(json.loads(text))
    except (ValueError, RecursionError):
        return None


def _call_of(value: Any) -> Call | None:
    if not isinstance(value, Mapping):
        return None
    if isinstance(value.get("function"), Mapping):
        value = value["function"]
    arguments = value.get("arguments", value.get("parameters"))
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments)
        except (ValueError, RecursionError):
            return None
    if not isinstance(value.get("name"), str) or not isinstance(arguments, Mapping):
        return None
    return Call(value["name"], dict(arguments))


def _python_calls(text: str) -> list[Call] | None:
    if len(text) > LONGEST:
        return None
    try:
        body = ast.parse(text.strip(), mode="eval").body
        nodes = body.elts if isinstance(body, (ast.List, ast.Tuple)) else [body]
        return [_python_call(node) for node in nodes]
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None


def _python_call(node: ast.expr) -> Call:
    if not isinstance(node, ast.Call):
        raise ValueError("no call")
    arguments: dict[str, Any] = {}
    for keyword in node.keywords:
        if keyword.arg is None:
            raise ValueError("unpacked arguments")
        arguments[keyword.arg] = _python_value(keyword.value)
    # Names are what ground truths have: an argument without one matches none.
    arguments |= {str(place): _python_value(each) for place, each in enumerate(node.args)}
    return Call(_dotted(node.func), arguments)


def _dotted(node: ast.expr) -> str:
    match node:
        case ast.Name(id=name):
            return name
        case ast.Attribute(value=owner, attr=name):
            return f"{_dotted(owner)}.{name}"
    raise ValueError("no name of a function")


def _python_value(node: ast.expr) -> Any:
    match node:
        case ast.Constant(value=value) if value is not Ellipsis:
            return value
        case ast.UnaryOp(op=ast.USub(), operand=ast.Constant(value=int() | float() as value)):
            return -value
        case ast.List(elts=items):
            return [_python_value(each) for each in items]
        case ast.Tuple(elts=items):
            return tuple(_python_value(each) for each in items)
        case ast.Dict(keys=keys, values=values):
            pairs = zip(keys, values, strict=True)
            return {_python_key(key): _python_value(value) for key, value in pairs}
        case ast.Name() | ast.Attribute() | ast.Call() | ast.Subscript():
            return ast.unparse(node)
    raise ValueError(f"{type(node).__name__} is no value")


def _python_key(node: ast.expr | None) -> str | int | float | bool:
    if isinstance(node, ast.Constant) and isinstance(node.value, (str, int, float)):
        return node.value
    raise ValueError("no key")
