"""The algorithms by name."""

from __future__ import annotations

import dataclasses
import difflib
import importlib
import inspect
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from megatron_resrl.algorithms.algorithm import Algorithm
from megatron_resrl.errors import SettingError
from megatron_resrl.user_files import run_file, split_name

_ALGORITHMS = {
    "grpo": "megatron_resrl.algorithms.grpo:GRPO",
    "nsr": "megatron_resrl.algorithms.nsr:NSR",
    "w_reinforce": "megatron_resrl.algorithms.w_reinforce:WReinforce",
    "resrl": "megatron_resrl.algorithms.resrl:ResRL",
    "cispo": "megatron_resrl.algorithms.cispo:CISPO",
    "gspo": "megatron_resrl.algorithms.gspo:GSPO",
    "llds": "megatron_resrl.algorithms.llds:LLDS",
}
"""Name -> module and class. A new algorithm adds one line here, or stays in a file of its own."""


def algorithm_names() -> tuple[str, ...]:
    """All registered names."""
    return tuple(_ALGORITHMS)


def get_algorithm(name: str, /, **options: Any) -> Algorithm:
    """Builds an algorithm.

    Args:
        name: One of `algorithm_names()`, or `path.py:name` of a subclass of `Algorithm`. That file
            is run to find it.
        options: The fields of the algorithm's dataclass to set, also those that a recipe sets
            elsewhere (`Algorithm.settings`).

    Returns:
        The algorithm, immutable.

    Raises:
        ValueError: Unknown name or option, with the nearest match and everything there is; or an
            option's value that cannot be used.
        SettingError: The file or its class cannot be used.
    """
    algorithm_class = get_algorithm_class(name)
    known = [field.name for field in dataclasses.fields(algorithm_class) if field.init]
    for option in options:
        if option not in known:
            raise ValueError(
                f"algorithm.options has {option!r}{_nearest(option, known)}; "
                f"{name} takes: {', '.join(known) or 'no options'}"
            )
    return algorithm_class(**options)


def get_algorithm_class(name: str) -> type[Algorithm]:
    """The class behind `algorithm.name`; arguments and errors as for `get_algorithm`."""
    own = split_name(name)
    if own is not None:
        return _own_class(name, *own)
    if name not in _ALGORITHMS:
        raise ValueError(
            f"there is no algorithm {name!r}{_nearest(name, algorithm_names())}; "
            f"registered are: {', '.join(algorithm_names())}"
        )
    module, class_name = _ALGORITHMS[name].split(":")
    return getattr(importlib.import_module(module), class_name)


def _own_class(name: str, file: Path, attribute: str) -> type[Algorithm]:
    """A class of the user's."""

    def refusal(problem: str, fix: str) -> SettingError:
        return SettingError("algorithm.name", name, problem, fix)

    if not file.is_file():
        raise refusal(f"there is no file {file}", "give path.py:name, or a registered name")
    try:
        module = run_file(file, "algorithm")
    except Exception as error:  # Whatever a user's file raises.
        raise refusal(
            f"{file} cannot be run ({type(error).__name__}: {error})", "correct the file"
        ) from error
    found = getattr(module, attribute, None)
    if not (inspect.isclass(found) and issubclass(found, Algorithm)):
        classes = inspect.getmembers(module, inspect.isclass)
        own = [
            key
            for key, value in classes
            if value.__module__ == module.__name__ and issubclass(value, Algorithm)
        ]
        fix = f"its algorithms are {', '.join(own)}" if own else "it has no subclass of Algorithm"
        raise refusal(f"{file} has no algorithm {attribute!r}", fix)
    if inspect.isabstract(found):
        missing = ", ".join(sorted(found.__abstractmethods__))
        raise refusal(f"{attribute} does not define {missing}", "define it, see Algorithm")
    return found


def _nearest(wrong: str, right: Sequence[str]) -> str:
    found = difflib.get_close_matches(str(wrong), right, n=1)
    return f", did you mean {found[0]!r}?" if found else ""
