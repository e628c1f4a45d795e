"""Reward functions by name, or by file and name."""

from __future__ import annotations

import importlib
import inspect
from pathlib import Path
from typing import Any, Protocol

from megatron_resrl.errors import SettingError, closest
from megatron_resrl.user_files import run_file, split_name

_BUILT_IN = {
    "math": ("megatron_resrl.rewards.math", "math_reward"),
    "integer": ("megatron_resrl.rewards.integer", "integer_reward"),
}
"""Module and attribute; a module is imported when its function is asked for."""

_FIX = f"give {', '.join(_BUILT_IN)}, or path.py:name"


class RewardFunction(Protocol):
    """Judges one response."""

    def __call__(
        self, response: str, ground_truth: Any, *, prompt: str, data_source: str, extra: dict
    ) -> float:
        """Returns the score of a response.

        Args:
            response: Decoded text without special tokens.
            ground_truth: As it stands in the question's file.
            prompt: The last message of the prompt.
            data_source: Name of the dataset.
            extra: The other columns of the question's row.

        Returns:
            A finite number; above 0 means correct.
        """


def get_reward(name: str) -> RewardFunction:
    """Finds a reward function.

    Args:
        name: `math`, `integer`, or `path.py:name`. That file is run to find the function.

    Raises:
        SettingError: There is no such file or function, or it cannot be called like a
            `RewardFunction`.
    """
    if name in _BUILT_IN:
        module, attribute = _BUILT_IN[name]
        return getattr(importlib.import_module(module), attribute)
    file, attribute = _split(name)
    module = run_file(file, "reward")
    if not hasattr(module, attribute):
        functions = inspect.getmembers(module, inspect.isfunction)
        own = [key for key, value in functions if value.__module__ == module.__name__]
        fix = f"its functions are {', '.join(own)}" if own else "it has no functions at all"
        raise _refusal(name, f"{file} has no function {attribute!r}", fix)
    function = getattr(module, attribute)
    _require_callable(name, function)
    return function


def absolute_name(name: str) -> str:
    """The same function's name, whatever the directory a process works in."""
    if name in _BUILT_IN:
        return name
    file, attribute = _split(name)
    return f"{file}:{attribute}"


def _split(name: str) -> tuple[Path, str]:
    found = split_name(name)
    if found is None:
        near = closest(name, _BUILT_IN)
        hint = f" (did you mean {near!r}?)" if near else ""
        raise _refusal(name, f"there is no such reward function{hint}", _FIX)
    path, attribute = found
    if not path.is_file():
        raise _refusal(name, f"there is no file {path}", _FIX)
    return path, attribute


def _require_callable(name: str, function: Any) -> None:
    wanted = "f(response, ground_truth, *, prompt, data_source, extra) -> float"
    if not callable(function):
        problem = f"it is of type {type(function).__name__}, not a function"
        raise _refusal(name, problem, f"give one like {wanted}")
    try:
        signature = inspect.signature(function)
    except ValueError:  # Some functions written in C do not tell.
        return
    try:
        signature.bind("", "", prompt="", data_source="", extra={})
    except TypeError as error:
        problem = f"{signature} cannot be called as {wanted} ({error})"
        raise _refusal(name, problem, "unused arguments can go to **context") from None


def _refusal(name: str, problem: str, fix: str) -> SettingError:
    return SettingError("reward.function", name, problem, fix)
