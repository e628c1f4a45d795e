"""JSON that keeps what JSON has no form for."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from megatron_resrl.generators.exact_json import from_json, to_json


@pytest.mark.parametrize(
    "value",
    [
        {"a": [1, 2.5, None, True, "x"], "b": {"c": []}},
        {"board": ((0, 1), (2, 3)), "empty": ()},
        {0: [1, 2], (1, 2): "edge", None: 3},
        {"seen": {"b", "a"}},
        {"__tuple__": [1]},
        {"__pairs__": {"__set__": 1}},
        [({1: ({2},)},)],
    ],
)
def test_to_json_keeps_what_json_would_change(value: Any) -> None:
    text = to_json(value)
    json.loads(text)
    found = from_json(text)
    assert found == value
    assert repr(found) == repr(value) or isinstance(value.get("seen"), set)


def test_to_json_makes_plain_values_of_arrays() -> None:
    assert from_json(to_json({"a": np.int64(3), "b": np.ones((1, 2))})) == {"a": 3, "b": [[1, 1]]}
    assert from_json('{"a": [1, {"b": null}]}') == {"a": [1, {"b": None}]}


def test_to_json_refuses_what_has_no_form() -> None:
    with pytest.raises(TypeError, match="object has no JSON"):
        to_json({"a": object()})
