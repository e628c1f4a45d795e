"""Settings that an algorithm does not use."""

from __future__ import annotations

from megatron_resrl.algorithms import get_algorithm_class
from megatron_resrl.config.schema import AlgorithmConfig, Recipe
from megatron_resrl.training.algorithm import unused_settings

RECIPE = Recipe(algorithm=AlgorithmConfig(clip_low=0.1, dual_clip=3.0))


def test_unused_settings_are_those_that_differ_and_have_no_use() -> None:
    # GSPO has a clip of its own, and no dual clip; clip_high has its default.
    assert unused_settings(RECIPE, get_algorithm_class("gspo")) == {
        "algorithm.clip_low": "clip_low",
        "algorithm.dual_clip": "",
    }


def test_unused_settings_of_an_algorithm_that_uses_all_are_none() -> None:
    assert unused_settings(RECIPE, get_algorithm_class("grpo")) == {}
