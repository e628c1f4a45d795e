"""The weightings by name, as `resrl.weights` has them."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from megatron_resrl.errors import SettingError, closest

# For types alone: the checks of a recipe ask for names and need no megatron-core.
if TYPE_CHECKING:
    from megatron_resrl.token_weighting.context import WeightingContext
    from megatron_resrl.token_weighting.protocol import TokenWeighting

_WEIGHTINGS = {
    "residual": "megatron_resrl.token_weighting.resrl:ResRLWeighting",
    "constant": "megatron_resrl.token_weighting.resrl:ResRLWeighting",
    "random": "megatron_resrl.token_weighting.resrl:ResRLWeighting",
    "inverted": "megatron_resrl.token_weighting.resrl:ResRLWeighting",
}
"""Name -> module and class, which takes a `WeightingContext`. A new weighting adds one line."""


def weighting_names() -> tuple[str, ...]:
    """All registered names."""
    return tuple(_WEIGHTINGS)


def require_weighting(name: str) -> None:
    """Refuses a value of `resrl.weights`.

    Raises:
        SettingError: There is no such weighting.
    """
    if name not in _WEIGHTINGS:
        near = closest(name, weighting_names())
        hint = f"did you mean {near}? " if near else ""
        raise SettingError(
            "resrl.weights",
            name,
            "there is no such weighting",
            f"{hint}registered are: {', '.join(weighting_names())}",
        )


def get_weighting(context: WeightingContext) -> TokenWeighting:
    """Builds the weighting that `resrl.weights` names.

    Raises:
        SettingError: There is none of this name.
    """
    name = context.settings.weights
    require_weighting(name)
    module, class_name = _WEIGHTINGS[name].split(":")
    return getattr(importlib.import_module(module), class_name)(context)
