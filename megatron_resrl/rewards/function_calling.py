"""Calls of functions, held against those that are right."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from megatron_resrl.rewards.call_match import Accepted, Schema, all_match
from megatron_resrl.rewards.ground_truths import shown
from megatron_resrl.rewards.tool_calls import BrokenCall, Call, calls_of, read_calls

SCHEMA_COLUMNS = ("function", "functions", "tools")
"""Columns of a row that may hold the schemas of its functions."""
_EXAMPLE = '[{"add": {"a": [1], "b": [2, ""]}}]'


def function_calling_reward(
    response: str, ground_truth: Any, *, prompt: str = "", data_source: str = "", extra: Any = None
) -> float:
    """1 if the response makes the right calls, in any order, and no other; otherwise 0.

    How calls are written says `read_calls`. A call is right as in BFCL: function, types by the
    function's schema (an integer for a float, too), required and accepted parameters; texts
    without case, blanks and some punctuation. Where no call is right, a response without one
    scores 1. What begins as a call and cannot be read scores 0, always.

    Args:
        response: Decoded text.
        ground_truth: Accepted calls, see `docs/rewards.md`; also as JSON.
        prompt: Not used.
        data_source: Not used.
        extra: The row's other columns; `function`, `functions` or `tools` may hold JSON schemas.

    Raises:
        ValueError: Ground truth or schemas are something else.
    """
    schemas = _schemas_in(extra or {})
    accepted = _read(ground_truth, schemas)
    try:
        calls = read_calls(response)
    except BrokenCall:
        return 0.0
    return float(all_match(calls, accepted))


def check_ground_truth(value: Any) -> None:
    """Refuses what says no calls.

    Raises:
        ValueError: With what is wrong and what would be right.
    """
    _read(value, {})


def _read(value: Any, schemas: Mapping[str, Schema]) -> list[Accepted]:
    content = _parsed(value)
    if isinstance(content, Mapping) and "calls" in content:
        own = dict(_schemas(content.get("functions") or []))
        return _read(content["calls"], {**schemas, **own})
    if isinstance(content, str):
        content = _in_text(content)
    if isinstance(content, (list, Mapping)):
        calls = calls_of(content)
        if calls is not None:
            return [_exactly(call, schemas) for call in calls]
    if not isinstance(content, list):
        raise _refusal(content)
    return [_accepted(each, schemas) for each in content]


def _in_text(text: str) -> list[dict[str, Any]]:
    """The calls of a response that is a ground truth."""
    try:
        calls = read_calls(text)
    except BrokenCall:
        calls = []
    if not calls:
        raise _refusal(text)
    return [{"name": call.name, "arguments": call.arguments} for call in calls]


def _exactly(call: Call, schemas: Mapping[str, Schema]) -> Accepted:
    values = {name: [value] for name, value in call.arguments.items()}
    return Accepted(call.name, values, schemas.get(call.name))


def _accepted(each: Any, schemas: Mapping[str, Schema]) -> Accepted:
    if not isinstance(each, Mapping) or len(each) != 1:
        raise _refusal(each)
    [(name, values)] = each.items()
    if not isinstance(values, Mapping) or not all(isinstance(v, list) for v in values.values()):
        raise _refusal(each)
    return Accepted(name, values, schemas.get(name))


def _refusal(value: Any) -> ValueError:
    return ValueError(
        f"{shown(value)} says no calls of functions: give for each call its function and, for "
        f'each parameter, the list of right values ("" among them: it may be left out), e.g. '
        f"{_EXAMPLE}; [] where no call is right"
    )


def _schemas_in(extra: Mapping[str, Any]) -> dict[str, Schema]:
    for column in SCHEMA_COLUMNS:
        if content := _parsed(extra.get(column)):
            return dict(_schemas(content))
    return {}


def _schemas(content: Any) -> Iterator[tuple[str, Schema]]:
    for each in content if isinstance(content, list) else [content]:
        function = _parsed(each)
        if isinstance(function, Mapping) and isinstance(function.get("function"), Mapping):
            function = function["function"]
        if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
            raise ValueError(
                f"{shown(each)} is no schema of a function: give objects with name and parameters "
                f"in the column {' or '.join(SCHEMA_COLUMNS)}"
            )
        parameters = function.get("parameters")
        if isinstance(parameters, Mapping) and isinstance(parameters.get("properties"), Mapping):
            required = parameters.get("required") or ()
            yield function["name"], Schema(parameters["properties"], tuple(required))


def _parsed(value: Any) -> Any:
    """What JSON text stands for; any other text as it is."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        return value
