"""The weightings by name, as `resrl.weights` has them, or by file and name."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

from megatron_resrl.registry import Registry

# For types alone: the checks of a recipe ask for names and need no megatron-core.
if TYPE_CHECKING:
    from megatron_resrl.token_weighting.context import WeightingContext
    from megatron_resrl.token_weighting.protocol import TokenWeighting

_REGISTRY = Registry(
    setting="resrl.weights",
    kind="token weighting",
    built_in={
        "residual": "megatron_resrl.token_weighting.resrl:ResRLWeighting",
        "constant": "megatron_resrl.token_weighting.resrl:ResRLWeighting",
        "random": "megatron_resrl.token_weighting.resrl:ResRLWeighting",
        "inverted": "megatron_resrl.token_weighting.resrl:ResRLWeighting",
    },
    member="class",
    is_member=inspect.isclass,
    accepts=inspect.isclass,
)
"""A class takes a `WeightingContext`. A new weighting adds one line to `built_in`, or stays in a
file of its own."""


def require_weighting(name: str) -> None:
    """Refuses a value of `resrl.weights`; a user's file is run to see what it has.

    Raises:
        SettingError: There is no such weighting or file, or the class in it is no weighting.
    """
    if name not in _REGISTRY.built_in:
        _find_class(name)


def get_weighting(context: WeightingContext) -> TokenWeighting:
    """Builds the weighting that `resrl.weights` names.

    Raises:
        SettingError: See `require_weighting`.
    """
    return _find_class(context.settings.weights)(context)


def _find_class(name: str) -> Any:
    found, _ = _REGISTRY.find(name)
    lacks = [each for each in ("begin", "summarise") if not callable(getattr(found, each, None))]
    lacks += sorted(getattr(found, "__abstractmethods__", ()))
    if lacks:
        problem = f"{found.__name__} does not define {', '.join(lacks)}"
        raise _REGISTRY.refusal(name, problem, "define it, see TokenWeighting")
    return found
