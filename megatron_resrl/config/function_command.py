"""A function as a command: options from the function's arguments, what it returns printed."""

from __future__ import annotations

import inspect
import json
import re
import sys
from collections.abc import Callable, Collection, Sequence
from types import UnionType
from typing import Any, get_args, get_origin, get_type_hints

from jsonargparse import ArgumentParser

from megatron_resrl.errors import UNUSABLE, InputError, RunError


def run_function(function: Callable[..., object], arguments: Sequence[str] | None = None) -> int:
    """Runs a function from the command line and prints what it returns.

    Args:
        function: Its docstring describes the command and each option.
        arguments: Command line without the program's name; default: this process's. Options may
            be written with hyphens or underscores; a switch needs no value, e.g. `--force`; an
            option that is a list takes all words up to the next option.

    Returns:
        Exit status.
    """
    parser = ArgumentParser(description=(function.__doc__ or "").splitlines()[0])
    parser.add_function_arguments(function, as_positional=False)
    given = list(sys.argv[1:] if arguments is None else arguments)
    hints = get_type_hints(function)
    named = {name: hints.get(name) for name in inspect.signature(function).parameters}
    options = parser.parse_args(
        _plain(
            given,
            switches={name for name, kind in named.items() if kind is bool},
            lists={name for name, kind in named.items() if _is_list(kind)},
        )
    )
    try:
        returned = function(**options.as_dict())
    except (InputError, RunError) as error:
        print(error, file=sys.stderr)
        return UNUSABLE
    print(returned)
    return 0


def _is_list(kind: Any) -> bool:
    """Whether a parameter takes a list, or a list or None."""
    if get_origin(kind) is UnionType:
        return any(map(_is_list, get_args(kind)))
    return get_origin(kind) is list


def _plain(words: Sequence[str], *, switches: Collection[str], lists: Collection[str]) -> list[str]:
    """A command line as jsonargparse wants it: underscores, values of switches, lists as JSON."""
    plain: list[str] = []
    rest = [re.sub(r"^--[\w-]+", lambda found: _underscored(found[0]), word) for word in words]
    while rest:
        word, name = rest[0], rest[0].removeprefix("--")
        # How many of the next words are values, and not options.
        values = next(
            (n for n, each in enumerate(rest[1:]) if each.startswith("--")), len(rest) - 1
        )
        if name in switches and values == 0:
            plain.append(f"{word}=true")
        elif name in lists and values:
            plain.append(f"{word}={json.dumps(rest[1 : values + 1])}")
            rest = rest[values:]
        elif (parts := word.split("=", 1))[0].removeprefix("--") in lists and len(parts) == 2:
            plain.append(f"{parts[0]}={json.dumps([parts[1]])}")
        else:
            plain.append(word)
        rest = rest[1:]
    return plain


def _underscored(option: str) -> str:
    return "--" + option[2:].replace("-", "_")
