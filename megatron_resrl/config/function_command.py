"""A function as a command: options from the function's arguments, what it returns printed."""

from __future__ import annotations

import inspect
import json
import sys
from collections.abc import Callable, Collection, Sequence
from types import UnionType
from typing import Any, get_args, get_origin, get_type_hints

from jsonargparse import ArgumentParser

from megatron_resrl.errors import InputError, RunError, exit_status


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
        return exit_status(error)
    except KeyboardInterrupt as error:
        print("interrupted", file=sys.stderr)
        return exit_status(error)
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
    for name, values in _options(words):
        if name in switches and not values:
            plain.append(f"--{name}=true")
        elif name in lists and values:
            plain.append(f"--{name}={json.dumps(values)}")
        elif name and values:
            plain += [f"--{name}={values[0]}", *values[1:]]
        else:
            plain += [f"--{name}"] * bool(name) + values
    return plain


def _options(words: Sequence[str]) -> list[tuple[str, list[str]]]:
    """Each option's name with underscores, and the words up to the next; first those before any."""
    options: list[tuple[str, list[str]]] = [("", [])]
    for word in words:
        if word.startswith("--"):
            name, equals, value = word.removeprefix("--").partition("=")
            options.append((name.replace("-", "_"), [value] if equals else []))
        else:
            options[-1][1].append(word)
    return options
