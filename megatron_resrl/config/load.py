"""YAML and command line -> a recipe; jsonargparse checks and converts the values."""

from __future__ import annotations

import argparse
import copy
import dataclasses
import typing
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import yaml

from megatron_resrl.config.problems import Problem, RecipeError
from megatron_resrl.config.recipe_schema import RecipeSchema, alternatives, leaf, parent, schema_of
from megatron_resrl.config.schema import Recipe, RunSettings
from megatron_resrl.config.schema_questions import FileEntry
from megatron_resrl.config.stages import Stage
from megatron_resrl.config.unknown_names import likely_stage, unknown_setting
from megatron_resrl.config.yaml_source import correction, parse_yaml, read_yaml

_FILES = tuple[FileEntry, ...]
_PATHS = (
    *("output_dir", "model.path", "model.tokenizer_path"),
    *("reward.function", "reward.code.packages", "algorithm.name", "evaluation.suites_dir"),
)
"""Settings with one path; beside those with files."""

R = TypeVar("R", bound=RunSettings)
"""A kind of recipe."""
B = TypeVar("B")
"""A recipe or a section."""


class _Given(NamedTuple):
    """One setting as the user wrote it."""

    value: Any
    place: str


@typing.overload
def load_recipe(path: str | None, overrides: Sequence[str] = ()) -> Recipe: ...


@typing.overload
def load_recipe(path: str | None, overrides: Sequence[str], kind: type[R]) -> R: ...


def load_recipe(
    path: str | None, overrides: Sequence[str] = (), kind: type[RunSettings] = Recipe
) -> RunSettings:
    """Reads a recipe and applies command-line overrides.

    Args:
        path: YAML file; None: every setting starts from its default.
        overrides: `--section.setting=value` or `--section.setting value`; lists and mappings as
            YAML or JSON. A dotted name below a pass-through mapping sets one of its keys.
        kind: Which recipe, see `megatron_resrl.config.stages.STAGES`.

    Returns:
        The recipe. Relative paths stay relative to the current directory; `~` is expanded.

    Raises:
        RecipeError: Unknown settings and wrong types, all of them.
    """
    recipe, problems = read_recipe(path, overrides, kind)
    if problems:
        raise RecipeError(problems)
    return recipe


@typing.overload
def read_recipe(
    path: str | None, overrides: Sequence[str] = ()
) -> tuple[Recipe, list[Problem]]: ...


@typing.overload
def read_recipe(
    path: str | None, overrides: Sequence[str], kind: type[R]
) -> tuple[R, list[Problem]]: ...


def read_recipe(
    path: str | None, overrides: Sequence[str] = (), kind: type[RunSettings] = Recipe
) -> tuple[RunSettings, list[Problem]]:
    """Like `load_recipe`, but settings with problems keep their defaults and are reported.

    Raises:
        RecipeError: The file cannot be read at all.
    """
    content, lines = ({}, {}) if path is None else read_yaml(path)
    problems: list[Problem] = []
    options = list(_split(overrides, problems))
    reading = _Reading(schema_of(kind), likely_stage(content, [name for name, _ in options]))
    if path is not None:
        places = {name: f"{path}, line {line}" for name, line in lines.items()}
        reading.collect(content, "", places, path)
    reading.problems += problems
    for name, text in options:
        reading.apply_override(name, text)
    values = reading.converted()
    return _built(kind, "", values, reading.schema), reading.problems


def _built(cls: type[B], section: str, values: dict[str, Any], schema: RecipeSchema) -> B:
    """The dataclass of a section with its values and the sections in it; of a recipe for ''."""
    own = {leaf(name): value for name, value in values.items() if parent(name) == section}
    inner: dict[str, Any] = {
        leaf(name): _built(each, name, values, schema)
        for name, each in schema.sections.items()
        if parent(name) == section
    }
    return cls(**own, **inner)


def recipe_yaml(recipe: RunSettings) -> str:
    """The recipe of any stage as YAML with every setting written out.

    `load_recipe` reads one of reinforcement learning back equal. Secrets, fields with the metadata
    `secret`, are null.
    """
    return yaml.safe_dump(_plain(recipe), sort_keys=False, allow_unicode=True)


def _plain(value: Any) -> Any:
    """Dataclasses as mappings and tuples as lists."""
    if dataclasses.is_dataclass(value):
        return {
            each.name: None if each.metadata.get("secret") else _plain(getattr(value, each.name))
            for each in dataclasses.fields(value)
        }
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, (list, tuple)) else value


class _Reading:
    """What a user has given of the settings of one schema, and what is wrong with it."""

    def __init__(self, schema: RecipeSchema, likely: Stage | None) -> None:
        """
        Args:
            schema: Of the recipe.
            likely: Whose recipe it looks like, see `likely_stage`.
        """
        self.schema = schema
        self.likely = likely
        self.given: dict[str, _Given] = {}
        self.problems: list[Problem] = []

    def collect(
        self, content: dict[Any, Any], prefix: str, places: dict[str, str], place: str
    ) -> None:
        """Takes nested `content`, reporting names that do not exist."""
        for key, value in content.items():
            name = f"{prefix}{key}"
            here = places.get(name, place)
            if name in self.schema.settings:
                self.given[name] = _Given(value, here)
            elif name not in self.schema.sections:
                self.problems.append(self._unknown(name, value, here))
            elif isinstance(value, dict):
                self.collect(value, f"{name}.", places, place)
            elif value is not None:
                fix = f"write its settings below it, e.g. {self.schema.members(name)[0]}"
                self.problems.append(Problem(name, value, f"this is a section ({here})", fix))

    def _unknown(self, name: str, value: Any, place: str) -> Problem:
        return unknown_setting(self.schema, name, value, place, self.likely)

    def apply_override(self, name: str, text: str) -> None:
        """Takes one option of the command line."""
        place = "command line"
        hint = self.schema.settings.get(name)
        # One path may be a pattern such as *.jsonl, which is an alias to YAML.
        one_path = hint == _FILES and not text.lstrip().startswith(("[", "{", "-"))
        try:
            # Text settings take the words as they are: a regular expression is not YAML.
            value = text if one_path or str in alternatives(hint) else parse_yaml(text)
        except yaml.YAMLError as error:
            said = " ".join(str(error).split())
            fix = correction(error)
            self.problems.append(Problem(name, text, f"not valid YAML ({said})", fix))
            return
        if text == "null":
            value = None
        mapping = self.schema.mapping_above(name)
        if name in self.schema.settings:
            self.given[name] = _Given(value, place)
        elif name in self.schema.sections:
            self.collect({name: value}, "", {}, place)
        elif mapping is not None:
            merged = _with_key(self.given.get(mapping), name, mapping, value)
            self.given[mapping] = _Given(merged, place)
        else:
            self.problems.append(self._unknown(name, value, place))

    def converted(self) -> dict[str, Any]:
        """Values of the right type, by jsonargparse; the others are reported and left out."""
        values: dict[str, Any] = {}
        for name, (value, _) in self.given.items():
            hint = self.schema.settings[name]
            # An empty mapping is usually written as a key with nothing behind it.
            values[name] = {} if value is None and _is_mapping(hint) else value
            if hint == _FILES and isinstance(value, (str, dict)):
                values[name] = [value]
        try:
            return self._parse(values)
        except argparse.ArgumentError:
            pass  # Ask for each setting alone, so that all wrong ones are named.
        good: dict[str, Any] = {}
        for name, value in values.items():
            try:
                good |= self._parse({name: value})
            except argparse.ArgumentError:
                problem = f"wrong type ({self.given[name].place})"
                fix = f"give {_words(self.schema.settings[name])}"
                self.problems.append(Problem(name, value, problem, fix))
        return good

    def _parse(self, values: dict[str, Any]) -> dict[str, Any]:
        settings = self.schema.settings
        nested: dict[str, Any] = {}
        for name, value in values.items():
            inner: dict[str, Any] = nested
            for section in filter(None, parent(name).split(".")):
                inner = inner.setdefault(section, {})
            inner[leaf(name)] = value
            if value is None and type(None) not in alternatives(settings[name]):
                raise argparse.ArgumentError(None, f"{name} is null")  # jsonargparse lets it pass.
        # The parser changes what it is given.
        parsed = self.schema.value_parser.parse_object(copy.deepcopy(nested))
        return {
            name: _with_home(
                name,
                settings[name],
                _as_written(settings[name], value)
                if _is_text(settings[name], value)
                else parsed[name],
            )
            for name, value in values.items()
        }


def _with_home(name: str, hint: Any, value: Any) -> Any:
    """`~` expanded in what names files."""
    if hint == _FILES:
        return tuple(map(_expanded, value))
    return _expanded(value) if name in _PATHS else value


def _expanded(path: Any) -> Any:
    if isinstance(path, dict):
        paths = {k: _expanded(path[k]) for k in ("path", "reward", "function") if k in path}
        return path | paths
    if not isinstance(path, str) or not path.startswith("~"):
        return path
    return str(Path(path).expanduser())


def _split(overrides: Sequence[str], problems: list[Problem]) -> Iterator[tuple[str, str]]:
    """Pairs of dotted name and text; an option is `--name=text` or `--name text`."""
    rest = iter(overrides)
    for token in rest:
        name, equals, text = token.removeprefix("--").partition("=")
        if not token.startswith("--") or not name:
            fix = "write COMMAND RECIPE.yaml --section.setting VALUE"
            problems.append(Problem("command line", token, "unexpected argument", fix))
            continue
        value = text if equals else next(rest, None)
        if value is None:
            problems.append(Problem(name, None, "no value follows it", f"write --{name} VALUE"))
        else:
            yield name, value


def _with_key(before: _Given | None, name: str, mapping: str, value: Any) -> dict[str, Any]:
    """The mapping given so far, plus the key that `name` spells below it; nested keys too."""
    merged = dict(before.value) if before and isinstance(before.value, dict) else {}
    inner = merged
    *parents, last = name.removeprefix(f"{mapping}.").split(".")
    for part in parents:
        inner[part] = dict(inner[part]) if isinstance(inner.get(part), dict) else {}
        inner = inner[part]
    inner[last] = value
    return merged


def _is_mapping(hint: Any) -> bool:
    return typing.get_origin(hint) is dict


def _as_written(hint: Any, value: Any) -> Any:
    return tuple(value) if hint == _FILES else value


def _is_text(hint: Any, value: Any) -> bool:
    """Whether the value is right as it was read.

    jsonargparse reads text once more as YAML where the type is optional or holds `Any`, and so
    turns the pattern "#### (.*)" into a comment and "null" into None.
    """
    if _is_mapping(hint):
        return isinstance(value, dict)
    if hint == _FILES:
        return isinstance(value, (list, tuple))
    return isinstance(value, str) and str in alternatives(hint)


def _words(hint: Any) -> str:
    """The type in words, for messages."""
    if hint == _FILES:
        return "a path, or a list like [a.jsonl, {path: b.parquet, prompt_key: question}]"
    simple = {int: "an integer", float: "a number", bool: "true or false", str: "a string"}
    arguments = typing.get_args(hint)
    if hint in simple:
        return simple[hint]
    if len(alternatives(hint)) > 1:
        known = [_words(item) for item in arguments if item is not type(None)]
        return " or ".join([*known, "null"])
    origin = typing.get_origin(hint)
    if origin is typing.Literal:
        return f"one of {', '.join(map(str, arguments))}"
    if origin is tuple:
        example = "[a, b]" if arguments[0] is str else "[1, 2]"
        number = "" if arguments[-1] is Ellipsis else f"{len(arguments)} items, "
        return f"a list like {example}: {number}each {_words(arguments[0])}"
    return "a mapping like {name: value}"
