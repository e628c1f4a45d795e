"""What there is to choose from, for people: of every algorithm a line, its source and options."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import docstring_parser

from megatron_resrl.algorithms.algorithm import KL_SETTING, Algorithm
from megatron_resrl.algorithms.registry import algorithm_names, get_algorithm_class
from megatron_resrl.config.recipe_schema import first_sentence


@dataclass(frozen=True)
class OptionEntry:
    """One key of `algorithm.options`."""

    default: Any
    meaning: str


@dataclass(frozen=True)
class AlgorithmEntry:
    """One value of `algorithm.name`."""

    name: str
    summary: str
    """One line: its formula."""
    source: str
    """Paper, and library where that decided."""
    published_with: Mapping[str, Any]
    """Settings of the source."""
    options: Mapping[str, OptionEntry]
    """Its own ones; those of every algorithm are `common_options`."""


def algorithm_entries() -> list[AlgorithmEntry]:
    """All algorithms of the package, in the order of the registry."""
    return [_entry(get_algorithm_class(name)) for name in algorithm_names()]


def common_options() -> dict[str, OptionEntry]:
    """Options that every algorithm has."""
    return option_entries(Algorithm)


def _entry(found: type[Algorithm]) -> AlgorithmEntry:
    common = common_options()
    own = {
        name: option for name, option in option_entries(found).items() if common.get(name) != option
    }
    return AlgorithmEntry(
        found.name,
        first_sentence((found.__doc__ or "").partition("\n\n")[0]),
        found.source,
        found.published_with,
        own,
    )


def option_entries(found: Any) -> dict[str, OptionEntry]:
    """Fields of a dataclass that a recipe sets as options, with the docstrings under them.

    Args:
        found: An algorithm, or options of a weighting.
    """
    meanings: dict[str, str] = {}
    for each in reversed(found.__mro__[:-1]):
        meanings |= {
            meta.arg_name: " ".join((meta.description or "").split())
            for meta in docstring_parser.parse_from_object(each).params
        }
    return {
        field.name: OptionEntry(field.default, meanings.get(field.name, ""))
        for field in dataclasses.fields(found)
        if field.init and field.name not in {*getattr(found, "settings", ()), *KL_SETTING}
    }
