"""Values that cross between processes."""

from __future__ import annotations

import json
import math
from collections import Counter, OrderedDict, deque
from decimal import Decimal
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron_resrl.sandbox.inside.values import decoded, encoded

HASHABLE = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(allow_nan=False),
    st.text(st.characters()),
    st.binary(),
    st.complex_numbers(allow_nan=False),
    st.fractions(),
    st.decimals(allow_nan=False),
)
VALUES = st.recursive(
    HASHABLE,
    lambda inner: st.one_of(
        st.lists(inner),
        st.lists(inner).map(tuple),
        st.lists(inner).map(deque),
        st.dictionaries(HASHABLE, inner),
        st.sets(HASHABLE),
        st.frozensets(HASHABLE),
    ),
    max_leaves=20,
)


def refuse(value: Any) -> int:
    raise AssertionError(f"{value!r} is plain data")


def crossed(value: Any) -> Any:
    return decoded(encoded(value, refuse), refuse)


@given(VALUES)
def test_values_arrive_as_they_were(value: Any) -> None:
    arrived = crossed(value)
    assert arrived == value
    assert type(arrived) is type(value)


def test_values_of_other_kinds_arrive_as_plain_ones() -> None:
    assert crossed(Counter("aab")) == {"a": 2, "b": 1}
    assert crossed(OrderedDict(a=1)) == {"a": 1}
    assert crossed(range(1, 9, 2)) == range(1, 9, 2)
    assert list(crossed(number**2 for number in range(3))) == [0, 1, 4]
    assert crossed([int, dict]) == [int, dict]
    assert math.isnan(crossed(float("nan")))
    assert crossed(10**10000) == 10**10000
    assert crossed([Decimal("1.10"), Fraction(1, 3)]) == [Decimal("1.10"), Fraction(1, 3)]


def test_values_that_are_no_data_stay_where_they_are() -> None:
    kept: list[Any] = []
    text = encoded([len, 1], lambda value: kept.append(value) or 7)
    assert kept == [len]
    assert decoded(text, lambda number: f"object {number}") == ["object 7", 1]


@pytest.mark.parametrize(
    "nonsense",
    [
        "",
        "{}",
        '{"tuple": [1], "set": [2]}',
        '{"unknown": [1]}',
        '{"type": "object"}',
        '{"range": [0, 1, 0]}',
        '{"bytes": "zz"}',
        '{"set": [[1]]}',
        '{"dict": [[1]]}',
        '{"int": 5}',
        '{"fraction": "1/0"}',
        '{"fraction": "1e999999999"}',
        '{"tuple": 5}',
        "[" * 100000,
    ],
)
def test_values_that_are_nonsense_are_refused(nonsense: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - what json says is not ours
        decoded(nonsense, refuse)


def test_values_run_no_code_when_they_arrive() -> None:
    text = json.dumps({"object": "__import__('os')._exit(1)"})
    assert decoded(text, lambda number: number) == "__import__('os')._exit(1)"
