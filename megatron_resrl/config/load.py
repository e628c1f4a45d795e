"""YAML and command line -> `Recipe`; jsonargparse checks and converts the values."""

from __future__ import annotations

import argparse
import copy
import dataclasses
import functools
import re
import types
import typing
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from jsonargparse import ArgumentParser, set_parsing_settings

from megatron_resrl.config.foreign_names import hint
from megatron_resrl.config.problems import Problem, RecipeError
from megatron_resrl.config.ranges import Range, field_ranges
from megatron_resrl.config.schema import FileEntry, Recipe, RunSettings
from megatron_resrl.config.yaml_source import correction, parse_yaml, read_yaml
from megatron_resrl.errors import closest

SECTIONS: dict[str, type] = {
    name: hint
    for name, hint in typing.get_type_hints(Recipe).items()
    if isinstance(hint, type) and dataclasses.is_dataclass(hint)
}
"""Section name -> its dataclass."""

SETTINGS: dict[str, Any] = {
    name: hint for name, hint in typing.get_type_hints(Recipe).items() if name not in SECTIONS
} | {
    f"{section}.{name}": hint
    for section, cls in SECTIONS.items()
    for name, hint in typing.get_type_hints(cls).items()
}
"""Dotted name of every setting -> its type."""

RANGES: dict[str, Range] = {
    name: allowed for name, allowed in field_ranges(Recipe).items() if name not in SECTIONS
} | {
    f"{section}.{name}": allowed
    for section, cls in SECTIONS.items()
    for name, allowed in field_ranges(cls).items()
}
"""Dotted name of every number with a range -> the range."""


_FILES = tuple[FileEntry, ...]


_ALIKE, _VERY_ALIKE = 0.7, 0.8
"""How similar a name must be to be the one that was meant: in its own section, and elsewhere."""


class _Given(NamedTuple):
    """One setting as the user wrote it."""

    value: Any
    place: str


def load_recipe(path: str | None, overrides: Sequence[str] = ()) -> Recipe:
    """Reads a recipe and applies command-line overrides.

    Args:
        path: YAML file; None: every setting starts from its default.
        overrides: `--section.setting=value` or `--section.setting value`; lists and mappings as
            YAML or JSON. A dotted name below a pass-through mapping sets one of its keys.

    Returns:
        The recipe. Relative paths stay relative to the current directory; `~` is expanded.

    Raises:
        RecipeError: Unknown settings and wrong types, all of them.
    """
    recipe, problems = read_recipe(path, overrides)
    if problems:
        raise RecipeError(problems)
    return recipe


def read_recipe(path: str | None, overrides: Sequence[str] = ()) -> tuple[Recipe, list[Problem]]:
    """Like `load_recipe`, but settings with problems keep their defaults and are reported.

    Raises:
        RecipeError: The file cannot be read at all.
    """
    problems: list[Problem] = []
    given: dict[str, _Given] = {}
    if path is not None:
        content, lines = read_yaml(path)
        places = {name: f"{path}, line {line}" for name, line in lines.items()}
        _collect(content, "", places, path, given, problems)
    for name, text in _split(overrides, problems):
        _apply_override(name, text, given, problems)
    values = _convert(given, problems)
    sections = {
        name: cls(**{key.partition(".")[2]: values[key] for key in values if _in(key, name)})
        for name, cls in SECTIONS.items()
    }
    top = {key: value for key, value in values.items() if "." not in key}
    return _expand_home(Recipe(**top, **sections)), problems


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


def settings_parser(prog: str, description: str) -> ArgumentParser:
    """A parser that knows every setting with its type, default and docstring."""
    set_parsing_settings(docstring_parse_attribute_docstrings=True)
    parser = ArgumentParser(
        prog=prog,
        usage=f"{prog} [RECIPE.yaml] [--section.setting VALUE ...]",
        description=description,
        exit_on_error=False,
    )
    group = parser.add_argument_group("run")
    group.add_class_arguments(Recipe, as_group=False, skip=set(SECTIONS))
    for name, cls in SECTIONS.items():
        summary = first_sentence(cls.__doc__ or "")
        group = parser.add_argument_group(f"{name} - {summary}")
        group.add_class_arguments(cls, name, as_group=False)
    for action in parser._actions:
        if action.dest in RANGES:
            action.help = f"{action.help} Must be {RANGES[action.dest]}."
    return parser


def first_sentence(text: str) -> str:
    """Up to the first full stop, without it and on one line."""
    return re.split(r"\.(?:\s|$)", " ".join(text.split()), maxsplit=1)[0]


def _in(setting: str, section: str) -> bool:
    return setting.startswith(f"{section}.")


def _collect(
    content: dict[Any, Any],
    prefix: str,
    places: dict[str, str],
    place: str,
    given: dict[str, _Given],
    problems: list[Problem],
) -> None:
    """Moves nested `content` into `given`, reporting names that do not exist."""
    for key, value in content.items():
        name = f"{prefix}{key}"
        here = places.get(name, place)
        if name in SETTINGS:
            given[name] = _Given(value, here)
        elif name not in SECTIONS:
            problems.append(_unknown(name, value, here))
        elif isinstance(value, dict):
            _collect(value, f"{name}.", places, place, given, problems)
        elif value is not None:
            fix = f"write its settings below it, e.g. {_members(name)[0]}"
            problems.append(Problem(name, value, f"this is a section ({here})", fix))


def _members(section: str) -> list[str]:
    """Dotted settings of a section; of the top level for ''."""
    if section:
        return [setting for setting in SETTINGS if _in(setting, section)]
    return [setting for setting in SETTINGS if "." not in setting] + list(SECTIONS)


def _unknown(name: str, value: Any, place: str) -> Problem:
    """Looks for the meant setting in the same section first, then everywhere."""
    section, _, leaf = name.rpartition(".")
    members = [member.rpartition(".")[2] for member in _members(section) or _members("")]
    same_leaf = [setting for setting in SETTINGS if setting.rpartition(".")[2] == leaf]
    leaves = {setting.rpartition(".")[2]: setting for setting in SETTINGS}
    known = section in ("", *SECTIONS)
    prefix = f"{section}." if section else ""
    # `model.name` is not `algorithm.name`, while `optimizer.group_size` can only be one thing.
    telling = not known or "_" in leaf or leaf in SETTINGS
    if known and (near := closest(leaf, members, _VERY_ALIKE)):
        fix = f"did you mean {prefix}{near}?"
    elif foreign := hint(name):
        fix = foreign
    elif same_leaf and (telling or not section):
        fix = f"did you mean {closest(name, same_leaf, 0)}?"
    elif known and (near := closest(leaf, members, _ALIKE)):
        fix = f"did you mean {prefix}{near}?"
    elif telling and (near := closest(leaf, leaves, _VERY_ALIKE)):
        fix = f"did you mean {leaves[near]}?"
    elif near := closest(leaf, [*SETTINGS, *SECTIONS], _VERY_ALIKE):
        fix = f"did you mean {near}?"
    elif section in SECTIONS:
        fix = f"{section} has {', '.join(members)}"
    else:
        fix = f"a recipe has the settings {', '.join(_members(''))}"
    return Problem(name, value, f"there is no such setting ({place})", fix)


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


def _apply_override(
    name: str, text: str, given: dict[str, _Given], problems: list[Problem]
) -> None:
    place = "command line"
    hint = SETTINGS.get(name)
    # One path may be a pattern such as *.jsonl, which is an alias to YAML.
    one_path = hint == _FILES and not text.lstrip().startswith(("[", "{", "-"))
    try:
        # Text settings take the words as they are: a regular expression is not YAML.
        value = text if one_path or str in _alternatives(hint) else parse_yaml(text)
    except yaml.YAMLError as error:
        said = " ".join(str(error).split())
        fix = correction(error)
        problems.append(Problem(name, text, f"not valid YAML ({said})", fix))
        return
    if text == "null":
        value = None
    mapping = next((s for s, hint in SETTINGS.items() if _is_mapping(hint) and _in(name, s)), None)
    if name in SETTINGS:
        given[name] = _Given(value, place)
    elif name in SECTIONS:
        _collect({name: value}, "", {}, place, given, problems)
    elif mapping is not None:
        given[mapping] = _Given(_with_key(given.get(mapping), name, mapping, value), place)
    else:
        problems.append(_unknown(name, value, place))


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


def _alternatives(hint: Any) -> tuple[Any, ...]:
    """The members of a union; the type itself otherwise."""
    if isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union:
        return typing.get_args(hint)
    return (hint,)


def _is_mapping(hint: Any) -> bool:
    return typing.get_origin(hint) is dict


def _convert(given: dict[str, _Given], problems: list[Problem]) -> dict[str, Any]:
    """Values of the right type, by jsonargparse; the others are reported and left out."""
    values: dict[str, Any] = {}
    for name, (value, _) in given.items():
        # An empty mapping is usually written as a key with nothing behind it.
        values[name] = {} if value is None and _is_mapping(SETTINGS[name]) else value
        if SETTINGS[name] == _FILES and isinstance(value, (str, dict)):
            values[name] = [value]
    try:
        return _parse(values)
    except argparse.ArgumentError:
        pass  # Ask for each setting alone, so that all wrong ones are named.
    good: dict[str, Any] = {}
    for name, value in values.items():
        try:
            good |= _parse({name: value})
        except argparse.ArgumentError:
            problem = f"wrong type ({given[name].place})"
            problems.append(Problem(name, value, problem, f"give {_words(SETTINGS[name])}"))
    return good


@functools.cache
def _value_parser() -> ArgumentParser:
    return settings_parser("recipe", "")


def _parse(values: dict[str, Any]) -> dict[str, Any]:
    nested: dict[str, Any] = {}
    for name, value in values.items():
        section, _, leaf = name.rpartition(".")
        (nested.setdefault(section, {}) if section else nested)[leaf] = value
        if value is None and type(None) not in _alternatives(SETTINGS[name]):
            raise argparse.ArgumentError(None, f"{name} is null")  # jsonargparse lets it pass.
    parsed = _value_parser().parse_object(copy.deepcopy(nested))  # It changes what it is given.
    return {
        name: _as_written(SETTINGS[name], value)
        if _is_text(SETTINGS[name], value)
        else parsed[name]
        for name, value in values.items()
    }


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
    return isinstance(value, str) and str in _alternatives(hint)


def _words(hint: Any) -> str:
    """The type in words, for messages."""
    if hint == _FILES:
        return "a path, or a list like [a.jsonl, {path: b.parquet, prompt_key: question}]"
    simple = {int: "an integer", float: "a number", bool: "true or false", str: "a string"}
    arguments = typing.get_args(hint)
    if hint in simple:
        return simple[hint]
    if len(_alternatives(hint)) > 1:
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


def _expand_home(recipe: Recipe) -> Recipe:
    def expand(path: Any) -> Any:
        if isinstance(path, dict):
            paths = {
                key: expand(path[key]) for key in ("path", "reward", "function") if key in path
            }
            return path | paths
        if not isinstance(path, str) or not path.startswith("~"):
            return path
        return str(Path(path).expanduser())

    model, data, evaluation = recipe.model, recipe.data, recipe.evaluation
    tokenizer_path = model.tokenizer_path
    return dataclasses.replace(
        recipe,
        output_dir=expand(recipe.output_dir),
        model=dataclasses.replace(
            model,
            path=expand(model.path),
            tokenizer_path=None if tokenizer_path is None else expand(tokenizer_path),
        ),
        data=dataclasses.replace(data, train_files=tuple(map(expand, data.train_files))),
        evaluation=dataclasses.replace(evaluation, files=tuple(map(expand, evaluation.files))),
        reward=dataclasses.replace(recipe.reward, function=expand(recipe.reward.function)),
        algorithm=dataclasses.replace(recipe.algorithm, name=expand(recipe.algorithm.name)),
    )
