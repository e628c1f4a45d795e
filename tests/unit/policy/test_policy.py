"""A policy with and without an optimizer."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from tiny_recipe import write_model

from megatron_resrl.config.schema import (
    ModelConfig,
    OptimizerConfig,
    ParallelConfig,
    PrecisionConfig,
)
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


def test_adam_on_a_cpu_updates_in_one_kernel(tmp_path: Path) -> None:
    model, parallel = ModelConfig(path=str(write_model(tmp_path))), ParallelConfig()
    settings = OptimizerConfig(lr=1e-2, lr_warmup_steps=0, weight_decay=0.1, clip_grad=1e9)
    initialize(parallel, seed=0)
    policy = Policy.build(model, parallel, PrecisionConfig("fp32"), optimizer=settings)
    weights = list(policy.chunks[0].parameters())
    expected = [torch.nn.Parameter(each.detach().clone()) for each in weights]
    groups = [
        {"params": [each for each in expected if each.dim() > 1]},
        {"params": [each for each in expected if each.dim() == 1], "weight_decay": 0.0},
    ]
    peer = torch.optim.AdamW(groups, lr=1e-2, weight_decay=0.1, betas=(0.9, 0.999), fused=False)
    for _ in range(3):
        for own, other in zip(weights, expected, strict=True):
            other.grad = torch.randn_like(other)
            own.main_grad.copy_(other.grad)
        with torch.profiler.profile() as profile:
            policy.optimizer.step()
        peer.step()
    assert any(event.key == "aten::_fused_adamw_" for event in profile.key_averages())
    for own, other in zip(weights, expected, strict=True):
        # Three updates of at most lr each, rounded in another order: a few units in the last place.
        torch.testing.assert_close(own.detach(), other.detach(), rtol=1e-6, atol=1e-7)
    shutdown()
