"""Environments by name, or by file and name."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable
from typing import Any

from megatron_resrl.errors import SettingError, closest
from megatron_resrl.rollout.environments.environment import Environment
from megatron_resrl.user_files import run_file, split_name

_BUILT_IN = {
    "calculator": ("megatron_resrl.rollout.environments.calculator", "Calculator"),
    "number_game": ("megatron_resrl.rollout.environments.number_game", "NumberGame"),
}
"""Module and class; a module is imported when its class is asked for."""

_FIX = f"give {', '.join(_BUILT_IN)}, or path.py:name"
ROLES = ("tool", "user")


def get_environment(name: str, options: dict[str, Any]) -> Callable[[], Environment]:
    """Finds an environment and makes one, to see that it can be made.

    Args:
        name: `calculator`, `number_game`, or `path.py:name` of a class or function that returns
            an `Environment`. That file is run to find it.
        options: Its keyword arguments.

    Returns:
        Makes the environment of an episode.

    Raises:
        SettingError: There is no such file or name, it does not take these options, or what it
            makes is no environment.
    """
    factory = _find(name)
    _require_accepted(name, factory, options)
    try:
        made = factory(**options)
    except Exception as error:
        cause = f"{type(error).__name__}: {error}"
        problem = f"{name} refuses them ({cause})"
        raise _wrong_options(options, problem, "correct the options") from error
    _require_environment(name, made)
    return lambda: factory(**options)


def _find(name: str) -> Callable[..., Environment]:
    if name in _BUILT_IN:
        module, attribute = _BUILT_IN[name]
        return getattr(importlib.import_module(module), attribute)
    found = split_name(name)
    if found is None:
        near = closest(name, _BUILT_IN)
        hint = f" (did you mean {near!r}?)" if near else ""
        raise _refusal(name, f"there is no such environment{hint}", _FIX)
    file, attribute = found
    if not file.is_file():
        raise _refusal(name, f"there is no file {file}", _FIX)
    try:
        module = run_file(file, "environment")
    except Exception as error:
        cause = f"{type(error).__name__}: {error}"
        raise _refusal(name, f"{file} cannot be run ({cause})", "correct the file") from error
    if not callable(getattr(module, attribute, None)):
        classes = inspect.getmembers(module, inspect.isclass)
        own = [key for key, value in classes if value.__module__ == module.__name__]
        fix = f"its classes are {', '.join(own)}" if own else "it has no classes at all"
        raise _refusal(name, f"{file} has no class {attribute!r}", fix)
    return getattr(module, attribute)


def _require_accepted(
    name: str, factory: Callable[..., Environment], options: dict[str, Any]
) -> None:
    signature = inspect.signature(factory)
    try:
        signature.bind(**options)
    except TypeError as error:
        problem = f"{name} cannot be made with them ({error})"
        fix = f"its options are {', '.join(signature.parameters) or 'none'}"
        raise _wrong_options(options, problem, fix) from None


def _require_environment(name: str, made: Any) -> None:
    for method in ("reset", "step"):
        if not callable(getattr(made, method, None)):
            problem = f"what it makes ({type(made).__name__}) has no method {method!r}"
            raise _refusal(name, problem, "give a class with reset(record, seed) and step(action)")
    role = getattr(made, "role", None)
    if role not in ROLES:
        problem = f"its role is {role!r}"
        raise _refusal(name, problem, f"set the attribute role to {' or '.join(map(repr, ROLES))}")


def _refusal(name: str, problem: str, fix: str) -> SettingError:
    return SettingError("rollout.environment", name, problem, fix)


def _wrong_options(options: dict[str, Any], problem: str, fix: str) -> SettingError:
    return SettingError("rollout.environment_options", options, problem, fix)
