"""The algorithms by name."""

from __future__ import annotations

import dataclasses
import inspect
from typing import Any

from megatron_resrl.algorithms.algorithm import KL_SETTING, Algorithm
from megatron_resrl.errors import closest
from megatron_resrl.registry import Registry


def _is_algorithm(found: Any) -> bool:
    return inspect.isclass(found) and issubclass(found, Algorithm)


_REGISTRY = Registry(
    setting="algorithm.name",
    kind="algorithm",
    built_in={
        "grpo": "megatron_resrl.algorithms.grpo:GRPO",
        "nsr": "megatron_resrl.algorithms.nsr:NSR",
        "w_reinforce": "megatron_resrl.algorithms.w_reinforce:WReinforce",
        "resrl": "megatron_resrl.algorithms.resrl:ResRL",
        "cispo": "megatron_resrl.algorithms.cispo:CISPO",
        "gspo": "megatron_resrl.algorithms.gspo:GSPO",
        "llds": "megatron_resrl.algorithms.llds:LLDS",
        "dr_grpo": "megatron_resrl.algorithms.dr_grpo:DrGRPO",
        "rloo": "megatron_resrl.algorithms.rloo:RLOO",
        "reinforce_pp": "megatron_resrl.algorithms.reinforce_pp:ReinforcePlusPlus",
        "reinforce_pp_baseline": "megatron_resrl.algorithms.reinforce_pp:ReinforcePlusPlusBaseline",
        "psr": "megatron_resrl.algorithms.psr:PSR",
        "rft": "megatron_resrl.algorithms.rft:RFT",
        "gspo_token": "megatron_resrl.algorithms.gspo_token:GSPOToken",
        "gmpo": "megatron_resrl.algorithms.gmpo:GMPO",
        "sapo": "megatron_resrl.algorithms.sapo:SAPO",
        "lens": "megatron_resrl.algorithms.lens:LENS",
        "dppo": "megatron_resrl.algorithms.dppo:DPPO",
        "distillation": "megatron_resrl.algorithms.distillation:Distillation",
    },
    member="algorithm",
    is_member=_is_algorithm,
    accepts=_is_algorithm,
)
"""A new algorithm adds one line to `built_in`, or stays in a file of its own."""


def algorithm_names() -> tuple[str, ...]:
    """All registered names."""
    return tuple(_REGISTRY.built_in)


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
        SettingError: There is no such algorithm, with the nearest name and all that there are; or
            the file or its class cannot be used.
        ValueError: Unknown option, with the nearest one; or an option's value that cannot be used.
    """
    algorithm_class = get_algorithm_class(name)
    known = [field.name for field in dataclasses.fields(algorithm_class) if field.init]
    elsewhere = {**algorithm_class.settings, **KL_SETTING}
    for option in options:
        if option not in known:
            near = closest(str(option), known)
            hint = f", did you mean {elsewhere.get(near, near)!r}?" if near else ""
            own = [each for each in known if each not in elsewhere]
            raise ValueError(
                f"algorithm.options has {option!r}{hint}; "
                f"{name} takes: {', '.join(own) or 'no options'}"
            )
    return algorithm_class(**options)


def get_algorithm_class(name: str) -> type[Algorithm]:
    """The class behind `algorithm.name`; arguments and errors as for `get_algorithm`."""
    found, _ = _REGISTRY.find(name)
    if inspect.isabstract(found):
        missing = ", ".join(sorted(found.__abstractmethods__))
        problem = f"{found.__name__} does not define {missing}"
        raise _REGISTRY.refusal(name, problem, "define it, see Algorithm")
    return found
