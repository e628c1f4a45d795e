"""Reinforcement learning with verifiable rewards on megatron-core, with residual token weights.

The public names, imported when they are first used, so that `import megatron_resrl` is quick:

    from megatron_resrl import load_recipe, train
    train(load_recipe("recipe.yaml", ["--steps", "5"]))
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from megatron_resrl.platform.engine_python.files import hide_engine_without_kernels

if TYPE_CHECKING:
    from megatron_resrl.algorithms.algorithm import Algorithm as Algorithm
    from megatron_resrl.checks.recipe import check_recipe as check_recipe
    from megatron_resrl.config.load import load_recipe as load_recipe
    from megatron_resrl.config.schema import Recipe as Recipe
    from megatron_resrl.conversion.from_hugging_face import (
        convert_hf_to_megatron as convert_hf_to_megatron,
    )
    from megatron_resrl.conversion.to_hugging_face import (
        convert_megatron_to_hf as convert_megatron_to_hf,
    )
    from megatron_resrl.errors import InputError as InputError
    from megatron_resrl.evaluation.run import evaluate as evaluate
    from megatron_resrl.policy.policy import Policy as Policy
    from megatron_resrl.rollout.environments.environment import Environment as Environment
    from megatron_resrl.subspace.token_weights import token_weights as token_weights
    from megatron_resrl.token_weighting.protocol import TokenWeighting as TokenWeighting
    from megatron_resrl.token_weighting.tokenwise import TokenwiseWeighting as TokenwiseWeighting
    from megatron_resrl.training.rl_loop import train as train

__version__ = "0.1.0"

hide_engine_without_kernels()

_HOME_OF_NAME = {
    "Algorithm": "algorithms.algorithm",
    "Environment": "rollout.environments.environment",
    "InputError": "errors",
    "Policy": "policy.policy",
    "Recipe": "config.schema",
    "TokenWeighting": "token_weighting.protocol",
    "TokenwiseWeighting": "token_weighting.tokenwise",
    "check_recipe": "checks.recipe",
    "convert_hf_to_megatron": "conversion.from_hugging_face",
    "convert_megatron_to_hf": "conversion.to_hugging_face",
    "evaluate": "evaluation.run",
    "load_recipe": "config.load",
    "token_weights": "subspace.token_weights",
    "train": "training.rl_loop",
}
"""Public name -> module of this package that defines it."""

__all__ = ["__version__", *_HOME_OF_NAME]


def __getattr__(name: str) -> Any:
    """Imports a public name at its first use (PEP 562)."""
    if name not in _HOME_OF_NAME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_HOME_OF_NAME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME_OF_NAME})
