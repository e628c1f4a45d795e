"""Tests that run on Transformer Engine's layers only; `suite.passes_on_engine_layers` runs them."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import layouts
import pytest
import torch.distributed as dist
from tiny_scoring import write_llama

if not os.environ.get("TE_ON_CPU"):
    collect_ignore_glob = ["test_*.py"]


@pytest.fixture(scope="session", autouse=True)
def one_rank() -> Iterator[None]:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.fixture(autouse=True)
def _policies_end_with_their_test(one_rank: None) -> Iterator[None]:
    yield
    layouts.end_layout()


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Llama whose matrices FP8 products can take."""
    return write_llama(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="session")
def build(model: Path) -> Callable:
    """build("--precision.fp8=hybrid", ...) -> a trainable policy in bf16 with these settings."""
    from megatron_resrl.config.load import load_recipe
    from megatron_resrl.platform.distributed import initialize
    from megatron_resrl.policy.policy import Policy
    from megatron_resrl.rollout.worker import build_policy

    def built(*settings: str) -> Policy:
        given = (f"--model.path={model}", "--precision.params_dtype=bf16", *settings)
        recipe = load_recipe(None, given)
        initialize(recipe.parallel, 0)
        return build_policy(recipe)

    return built
