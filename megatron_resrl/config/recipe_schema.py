"""The names, types and ranges of the settings that a kind of recipe has, read off its dataclass."""

from __future__ import annotations

import dataclasses
import functools
import re
import types
import typing
from collections.abc import Hashable, Iterator
from dataclasses import dataclass
from typing import Any

from jsonargparse import ArgumentParser, set_parsing_settings

from megatron_resrl.config.ranges import Range, field_ranges
from megatron_resrl.config.schema import RunSettings


@dataclass(frozen=True)
class RecipeSchema:
    """Of one kind of recipe; see `schema_of`."""

    recipe: type[RunSettings]
    sections: dict[str, type]
    """Dotted name of every section -> its dataclass."""
    settings: dict[str, Any]
    """Dotted name of every setting -> its type."""
    ranges: dict[str, Range]
    """Dotted name of every number with a range -> the range."""

    @functools.cached_property
    def value_parser(self) -> ArgumentParser:
        """Checks and converts values."""
        return self.parser("recipe", "")

    def members(self, section: str) -> list[str]:
        """Dotted settings of a section, with the sections in it; of the top level for ''."""
        return [each for each in (*self.settings, *self.sections) if parent(each) == section]

    def mapping_above(self, name: str) -> str | None:
        """The pass-through mapping that a dotted name sets a key of."""
        return next(
            (
                setting
                for setting, hint in self.settings.items()
                if typing.get_origin(hint) is dict and name.startswith(f"{setting}.")
            ),
            None,
        )

    def parser(self, prog: str, description: str) -> ArgumentParser:
        """A parser that knows every setting with its type, default and docstring."""
        set_parsing_settings(docstring_parse_attribute_docstrings=True)
        parser = ArgumentParser(
            prog=prog,
            usage=f"{prog} [RECIPE.yaml] [--section.setting VALUE ...]",
            description=description,
            exit_on_error=False,
        )
        group = parser.add_argument_group("run")
        group.add_class_arguments(self.recipe, as_group=False, skip=self._sections_in(""))
        for name, cls in self.sections.items():
            summary = first_sentence(cls.__doc__ or "")
            group = parser.add_argument_group(f"{name} - {summary}")
            group.add_class_arguments(cls, name, as_group=False, skip=self._sections_in(name))
        for action in parser._actions:
            if action.dest in self.ranges:
                action.help = f"{action.help} Must be {self.ranges[action.dest]}."
        return parser

    def _sections_in(self, section: str) -> set[str | int]:
        return {leaf(name) for name in self.sections if parent(name) == section}


def parent(name: str) -> str:
    """The section of a dotted name; '' at the top level."""
    return name.rpartition(".")[0]


def leaf(name: str) -> str:
    """A dotted name without its section."""
    return name.rpartition(".")[2]


def value_of(recipe: RunSettings, name: str) -> Any:
    """The value of a setting, or a section, by its dotted name."""
    return functools.reduce(getattr, name.split("."), recipe)


def schema_of(recipe: type[RunSettings]) -> RecipeSchema:
    """What a kind of recipe has; the sections are its fields that are dataclasses."""
    return _read(typing.cast(Hashable, recipe))


@functools.cache
def _read(recipe: Any) -> RecipeSchema:
    sections = dict(_sections(recipe, ""))
    settings: dict[str, Any] = {}
    ranges: dict[str, Range] = {}
    for section, cls in {"": recipe, **sections}.items():
        prefix = f"{section}." if section else ""
        own = {f"{prefix}{name}": hint for name, hint in typing.get_type_hints(cls).items()}
        settings |= {name: hint for name, hint in own.items() if name not in sections}
        ranges |= {f"{prefix}{name}": each for name, each in field_ranges(cls).items()}
    return RecipeSchema(recipe, sections, settings, ranges)


def _sections(cls: type, prefix: str) -> Iterator[tuple[str, type]]:
    """Dotted name and dataclass of each section, before those in it."""
    for name, hint in typing.get_type_hints(cls).items():
        if isinstance(hint, type) and dataclasses.is_dataclass(hint):
            yield f"{prefix}{name}", hint
            yield from _sections(hint, f"{prefix}{name}.")


def alternatives(hint: Any) -> tuple[Any, ...]:
    """The members of a union; the type itself otherwise."""
    if isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union:
        return typing.get_args(hint)
    return (hint,)


def first_sentence(text: str) -> str:
    """Up to the first full stop, without it and on one line."""
    return re.split(r"\.(?:\s|$)", " ".join(text.split()), maxsplit=1)[0]
