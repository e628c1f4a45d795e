"""Environments by name, or by file and name."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from megatron_resrl.errors import SettingError
from megatron_resrl.registry import Registry
from megatron_resrl.rollout.environments.environment import Environment

_REGISTRY = Registry(
    setting="rollout.environment",
    kind="environment",
    built_in={
        "calculator": "megatron_resrl.rollout.environments.calculator:Calculator",
        "number_game": "megatron_resrl.rollout.environments.number_game:NumberGame",
    },
    member="class",
    is_member=inspect.isclass,
    accepts=callable,
)
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
    factory, _ = _REGISTRY.find(name)
    _require_accepted(name, factory, options)
    try:
        made = factory(**options)
    except Exception as error:
        cause = f"{type(error).__name__}: {error}"
        problem = f"{name} refuses them ({cause})"
        raise _wrong_options(options, problem, "correct the options") from error
    _require_environment(name, made)
    return lambda: factory(**options)


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
            raise _REGISTRY.refusal(
                name, problem, "give a class with reset(record, seed) and step(action)"
            )
    role = getattr(made, "role", None)
    if role not in ROLES:
        problem = f"its role is {role!r}"
        raise _REGISTRY.refusal(
            name, problem, f"set the attribute role to {' or '.join(map(repr, ROLES))}"
        )


def _wrong_options(options: dict[str, Any], problem: str, fix: str) -> SettingError:
    return SettingError("rollout.environment_options", options, problem, fix)
