"""The algorithm that a recipe names, with the options that the recipe sets anywhere."""

from __future__ import annotations

import dataclasses
from typing import Any

from megatron_resrl.algorithms import Algorithm, KlPenalty, get_algorithm, get_algorithm_class
from megatron_resrl.algorithms.algorithm import KL_SETTING
from megatron_resrl.config.schema import AlgorithmConfig, Recipe
from megatron_resrl.token_weighting.registry import ChosenWeighting, chosen_weighting


def algorithm_of(recipe: Recipe) -> Algorithm:
    """Builds the algorithm from `algorithm.options` and from `Algorithm.settings`.

    Raises:
        ValueError: As for `get_algorithm`; or an option that has a setting of its own.
        SettingError: The user's file or its class cannot be used.
    """
    name, options = recipe.algorithm.name, recipe.algorithm.options
    found = get_algorithm_class(name)
    settings = dict(found.settings)
    if weighting_of(recipe).entry.of_resrl:
        settings |= found.weighting_settings
    for option, setting in (settings | KL_SETTING).items():
        if option in options:
            raise ValueError(f"algorithm.options has {option!r}; set {setting} instead")
    values = {option: _value(recipe, setting) for option, setting in settings.items()}
    return get_algorithm(name, **options, **values, kl=kl_penalty(recipe.algorithm))


def kl_penalty(settings: AlgorithmConfig) -> KlPenalty | None:
    """The penalty that a recipe asks for; None: none."""
    if settings.kl_coefficient == 0:
        return None
    estimator = settings.kl_estimator
    if estimator == "auto":
        estimator = "k3" if settings.kl_in == "loss" else "k1"
    return KlPenalty(settings.kl_coefficient, estimator, settings.kl_in)


def weighting_of(recipe: Recipe) -> ChosenWeighting:
    """The token weighting of a recipe.

    Raises:
        SettingError: There is no such algorithm, or its file cannot be used.
    """
    weighted = get_algorithm_class(recipe.algorithm.name).weighted
    return chosen_weighting(recipe.algorithm, recipe.resrl, weighted=weighted)


def unused_settings(recipe: Recipe, algorithm: type[Algorithm]) -> dict[str, str]:
    """Settings of a recipe that differ from the default and that its algorithm does not use.

    Returns:
        Setting -> option of the same name, or "" if the algorithm has none.
    """
    default = Recipe()
    own = {field.name for field in dataclasses.fields(algorithm) if field.init}
    return {
        setting: option if option in own else ""
        for option, setting in Algorithm.settings.items()
        if setting not in algorithm.settings.values()
        and _value(recipe, setting) != _value(default, setting)
    }


def _value(recipe: Recipe, setting: str) -> Any:
    section, name = setting.split(".")
    return getattr(getattr(recipe, section), name)
