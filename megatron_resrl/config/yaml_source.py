"""Reads YAML as recipes use it: no repeated keys, 1e-5 is a number, and every key has a line."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from megatron_resrl.config.problems import Problem, RecipeError


class _Loader(yaml.SafeLoader):
    """PyYAML follows YAML 1.1: `1e-5` is a string to it, and of repeated keys the last wins."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                continue
            if key.value in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key.value!r} is given twice", key.start_mark
                )
            seen.add(key.value)
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\d[\d_]*)(\.[\d_]*)?[eE][-+]?\d+$"),
    list("-+0123456789"),
)


def parse_yaml(text: str) -> Any:
    """The value written in `text`.

    Raises:
        yaml.YAMLError: Not valid YAML, or a key is repeated.
    """
    return yaml.load(text, Loader=_Loader)


def correction(error: Exception) -> str:
    """What to do about text that is not YAML."""
    if "alias" in str(error):
        return "put a pattern in quotes, e.g. ['*.jsonl']: to YAML a bare * begins an alias"
    return "quote or correct it"


def read_yaml(path: str) -> tuple[dict[str, Any], dict[str, int]]:
    """Reads a recipe file.

    Args:
        path: The file.

    Returns:
        Its content (nested dictionaries; empty for an empty file), and the line (from 1) of each
        dotted key.

    Raises:
        RecipeError: The file is absent, unreadable, not valid YAML, or not a mapping.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
        content = parse_yaml(text)
    except FileNotFoundError as error:
        raise _unreadable(path, "there is no such file") from error
    except IsADirectoryError as error:
        raise _unreadable(path, "it is a directory") from error
    except OSError as error:
        raise _unreadable(path, f"it cannot be read ({error.strerror})") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        said = " ".join(str(error).split())
        fix = correction(error)
        invalid = Problem("recipe", path, f"it is not valid YAML ({said})", fix)
        raise RecipeError([invalid]) from error
    if content is None:
        return {}, {}
    if not isinstance(content, dict):
        problem = f"it holds a {type(content).__name__}, not settings"
        fix = "write settings as `section:` with indented `setting: value` lines"
        raise RecipeError([Problem("recipe", path, problem, fix)])
    return content, _lines(yaml.compose(text, Loader=_Loader), "")


def _unreadable(path: str, found: str) -> RecipeError:
    return RecipeError([Problem("recipe", path, found, "give the path of a YAML file")])


def _lines(node: yaml.Node | None, prefix: str) -> dict[str, int]:
    """Dotted key -> line, from 1."""
    lines: dict[str, int] = {}
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            name = f"{prefix}{key.value}"
            lines[name] = key.start_mark.line + 1
            lines |= _lines(value, f"{name}.")
    return lines
