"""Every number lies in the range that the schema gives it."""

from __future__ import annotations

from collections.abc import Iterator

from megatron_resrl.checks.facts import RunFacts
from megatron_resrl.config.problems import Problem
from megatron_resrl.config.ranges import range_problem
from megatron_resrl.config.recipe_schema import schema_of, value_of


def check_ranges(facts: RunFacts) -> Iterator[Problem]:
    """Numbers out of range; settings that are null are skipped."""
    for setting, allowed in schema_of(type(facts.recipe)).ranges.items():
        value = value_of(facts.recipe, setting)
        if found := range_problem(value, allowed):
            yield Problem(setting, value, *found)
