"""A tiny policy on one rank."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from tiny_recipe import write_model

from megatron_resrl.config.schema import ModelConfig, PrecisionConfig, Recipe
from megatron_resrl.platform.distributed import initialize, shutdown
from megatron_resrl.policy.policy import Policy
from megatron_resrl.rollout.worker import build_policy


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Recipe]:
    """Of a tiny model, on one rank."""
    model = write_model(tmp_path_factory.mktemp("model"))
    settings = Recipe(model=ModelConfig(path=str(model)), precision=PrecisionConfig("fp32"))
    initialize(settings.parallel, seed=0)
    yield settings
    shutdown()


@pytest.fixture(scope="module")
def policy(recipe: Recipe) -> Policy:
    return build_policy(recipe, trainable=False)
