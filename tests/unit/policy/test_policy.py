"""A policy without an optimizer."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from tiny_recipe import write_model

from megatron_resrl.config.schema import ModelConfig, ParallelConfig, PrecisionConfig
from megatron_resrl.platform.distributed import initialize, shutdown
from megatron_resrl.policy.policy import Policy


@pytest.fixture
def scorer(tmp_path: Path) -> Iterator[Policy]:
    model, parallel = ModelConfig(path=str(write_model(tmp_path))), ParallelConfig()
    initialize(parallel, seed=0)
    yield Policy.build(model, parallel, PrecisionConfig("fp32"))
    shutdown()


def test_policy_without_an_optimizer_says_that_it_only_scores(scorer: Policy) -> None:
    assert not scorer.trainable
    for part in ("optimizer", "scheduler", "chunks"):
        with pytest.raises(ValueError, match="only scores: build it with an optimizer"):
            getattr(scorer, part)
    with pytest.raises(ValueError, match="only scores"):
        scorer.leave_out_update()
