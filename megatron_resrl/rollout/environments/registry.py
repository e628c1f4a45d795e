"""Environments by name, or by file and name."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

from megatron_resrl.config.schema_questions import CodeConfig
from megatron_resrl.errors import SettingError
from megatron_resrl.registry import Registry
from megatron_resrl.rollout.environments.environment import Environment
from megatron_resrl.rollout.environments.packages import MissingPackage

_REGISTRY = Registry(
    setting="rollout.environment",
    kind="environment",
    built_in={
        "alfworld": "megatron_resrl.rollout.environments.alfworld_game:ALFWorldGame",
        "bfcl": "megatron_resrl.rollout.environments.bfcl_conversation:BFCLConversation",
        "calculator": "megatron_resrl.rollout.environments.calculator:Calculator",
        "gymnasium": "megatron_resrl.rollout.environments.gymnasium_game:GymnasiumGame",
        "number_game": "megatron_resrl.rollout.environments.number_game:NumberGame",
        "openenv": "megatron_resrl.rollout.environments.openenv:OpenEnv",
        "python": "megatron_resrl.rollout.environments.python_tool:Python",
        "scienceworld": "megatron_resrl.rollout.environments.scienceworld_game:ScienceWorldGame",
        "search": "megatron_resrl.rollout.environments.search:Search",
        "textworld": "megatron_resrl.rollout.environments.textworld_game:TextWorldGame",
        "tools": "megatron_resrl.rollout.environments.tools:Tools",
        "verifiers": (
            "megatron_resrl.rollout.environments.verifiers_environment:VerifiersEnvironment"
        ),
        "webshop": "megatron_resrl.rollout.environments.webshop_game:WebShopGame",
    },
    member="class",
    is_member=inspect.isclass,
    accepts=callable,
)
ROLES = ("tool", "user")
_TAKES_CODE = ("python", "tools")
"""Environments of ours that get `reward.code`, beside their options."""


def runs_code(name: str | None, options: dict[str, Any]) -> bool:
    """Whether an environment of ours runs programs as `reward.code` says."""
    return name == "python" or (name == "tools" and "python" in (options.get("tools") or ()))


def get_environment(
    name: str, options: dict[str, Any], code: CodeConfig | None = None
) -> Callable[[], Environment]:
    """Finds an environment and makes one, to see that it can be made.

    Args:
        name: A built-in name, or `path.py:name` of a class or function that returns an
            `Environment`. That file is run to find it.
        options: Its keyword arguments.
        code: How an environment of ours that runs programs does so; None: the defaults.

    Returns:
        Makes the environment of an episode.

    Raises:
        SettingError: There is no such file or name, it does not take these options, or what it
            makes is no environment.
    """
    factory, _ = _REGISTRY.find(name)
    _require_accepted(name, factory, options)
    if name in _TAKES_CODE:
        factory = functools.partial(factory, code=code)
    try:
        made = factory(**options)
    except MissingPackage as error:
        problem, _, fix = str(error).partition("; ")
        raise _REGISTRY.refusal(name, problem, fix) from error
    except Exception as error:
        cause = f"{type(error).__name__}: {error}"
        problem = f"{name} refuses them ({cause})"
        raise _wrong_options(options, problem, "correct the options") from error
    _require_environment(name, made)
    return functools.partial(factory, **options)


def _require_accepted(
    name: str, factory: Callable[..., Environment], options: dict[str, Any]
) -> None:
    signature = inspect.signature(factory)
    if name in _TAKES_CODE:
        own = [each for each in signature.parameters.values() if each.name != "code"]
        signature = signature.replace(parameters=own)
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
