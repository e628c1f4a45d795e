"""Ranges of numbers: what they hold, how they read, and that `--help` shows them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated

import pytest

from megatron_resrl.config.ranges import (
    BELOW_ONE,
    POSITIVE_SHARE,
    RisingPair,
    above,
    at_least,
    between,
    field_ranges,
    range_problem,
    require_in_range,
)
from megatron_resrl.config.recipe_schema import schema_of
from megatron_resrl.config.schema import Recipe


@pytest.mark.parametrize(
    ("allowed", "words", "good", "bad"),
    [
        (at_least(1), "at least 1", (1, 5), (0, math.inf, math.nan)),
        (above(0), "above 0", (1e-9,), (0, -1, math.inf)),
        (between(0, 255), "between 0 and 255", (0, 255), (-1, 256)),
        (BELOW_ONE, "at least 0 and below 1", (0, 0.999), (1, -0.1)),
        (POSITIVE_SHARE, "above 0 and at most 1", (1e-9, 1), (0, 1.1)),
        (
            RisingPair(0, 1),
            "two increasing numbers between 0 and 1",
            ((0, 1), (0.2, 0.8)),
            ((0.5, 0.5), (0.8, 0.2), (-0.1, 0.5), (0.5, 1.1), (0, math.nan)),
        ),
    ],
)
def test_range_holds_what_its_words_say(allowed, words, good, bad):
    assert str(allowed) == words
    assert all(allowed.holds(value) for value in good)
    assert not any(allowed.holds(value) for value in bad)


def test_range_problem_skips_null_and_names_long_integers():
    assert range_problem(None, at_least(1)) is None
    assert range_problem(0, at_least(1)) == ("out of range", "it must be at least 1")
    assert "64 bits" in range_problem(2**63, at_least(1))[0]


def test_require_in_range_names_the_argument():
    require_in_range("rank", 1, at_least(1))
    with pytest.raises(ValueError, match="rank is 0: out of range; it must be at least 1"):
        require_in_range("rank", 0, at_least(1))


@dataclass
class Section:
    plain: int = 0
    number: Annotated[int, at_least(2)] = 2
    optional: Annotated[float | None, above(0)] = None


def test_field_ranges_reads_annotations():
    assert {name: str(allowed) for name, allowed in field_ranges(Section).items()} == {
        "number": "at least 2",
        "optional": "above 0, or null",
    }


def test_settings_parser_shows_ranges():
    schema = schema_of(Recipe)
    assert schema.ranges.keys() <= schema.settings.keys()
    text = " ".join(schema.parser("check", "").format_help().split())
    assert "Peak learning rate (paper: 1e-6). Must be above 0. (type: float" in text
    assert "Must be above 1, or null." in text
