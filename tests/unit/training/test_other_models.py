"""A policy's earlier weights score while the policy itself is trained."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from one_step import score, take_step
from tiny_rollouts import rollouts

from megatron_resrl.config.schema import (
    AlgorithmConfig,
    ModelConfig,
    OptimizerConfig,
    PrecisionConfig,
    Recipe,
)
from megatron_resrl.observe.timers import PhaseTimers
from megatron_resrl.policy.policy import Policy
from megatron_resrl.rollout.batch import RolloutBatch
from megatron_resrl.rollout.worker import build_policy
from megatron_resrl.training import other_models
from megatron_resrl.training.other_models import FrozenPolicy
from megatron_resrl.training.rl_step import StepSettings


def recipe_of(model: Path, params_dtype: str = "fp32") -> Recipe:
    return Recipe(
        model=ModelConfig(path=str(model)),
        precision=PrecisionConfig(params_dtype),
        optimizer=OptimizerConfig(lr=1e-2, lr_warmup_steps=0),
        algorithm=AlgorithmConfig(name="grpo", micro_batch_size=8),
    )


def weights_of(policy: Policy) -> list[torch.Tensor]:
    return [each.detach().clone() for module in policy.modules for each in module.parameters()]


def same_bits(first: Sequence[torch.Tensor], second: Sequence[torch.Tensor]) -> bool:
    return all(torch.equal(*pair) for pair in zip(first, second, strict=True))


@pytest.mark.parametrize("params_dtype", ["fp32", "bf16"])
def test_frozen_policy_scores_and_disturbs_no_later_step(qwen3_on_one_rank, params_dtype):
    recipe, (samples, _) = recipe_of(qwen3_on_one_rank, params_dtype), rollouts()
    batch, passes = RolloutBatch.from_samples(samples), StepSettings.from_recipe(recipe).passes
    policy, undisturbed = build_policy(recipe), build_policy(recipe)
    before = score(policy, recipe, batch).log_probs
    frozen = FrozenPolicy(policy)
    for step in (1, 2):
        # The optimizer's masters and the buffers of gradients hold views of the weights.
        take_step(policy, recipe, samples, step)
        take_step(undisturbed, recipe, samples, step)
        own = weights_of(policy)
        found = frozen.log_probs(batch, passes, PhaseTimers())
        assert torch.equal(found, before)
        assert same_bits(weights_of(policy), own)
    after = score(policy, recipe, batch).log_probs
    assert (after - before)[batch.loss_mask].abs().max() > 0.01
    assert same_bits(own, weights_of(undisturbed))


def test_frozen_policy_that_fails_gives_the_weights_back(qwen3_on_one_rank, monkeypatch):
    recipe, (samples, _) = recipe_of(qwen3_on_one_rank), rollouts()
    batch, passes = RolloutBatch.from_samples(samples), StepSettings.from_recipe(recipe).passes
    policy = build_policy(recipe)
    frozen = FrozenPolicy(policy)
    take_step(policy, recipe, samples)
    own = weights_of(policy)

    def fails(*arguments: object) -> None:
        assert not same_bits(weights_of(policy), own)
        raise RuntimeError("in the pass")

    monkeypatch.setattr(other_models, "score_batch", fails)
    with pytest.raises(RuntimeError, match="in the pass"):
        frozen.log_probs(batch, passes, PhaseTimers())
    assert same_bits(weights_of(policy), own)


@pytest.mark.setting("algorithm.kl_coefficient")
def test_reference_is_the_policy_in_the_first_step(qwen3_on_one_rank):
    recipe, (samples, _) = recipe_of(qwen3_on_one_rank), rollouts()
    algorithm = AlgorithmConfig(name="grpo", micro_batch_size=8, kl_coefficient=0.5)
    recipe = Recipe(**{**vars(recipe), "algorithm": algorithm})
    policy = build_policy(recipe)
    others = {"reference_log_probs": FrozenPolicy(policy)}
    first, second = (
        take_step(policy, recipe, samples, step, others=others).metrics for step in (1, 2)
    )
    # Micro-batches of other sizes: a log-probability of fp32 differs in its last bits.
    assert 0 <= first["reference/kl"] < 1e-10
    assert second["reference/kl"] > 1e-4
    assert second["reference/loss"] > 1e-5
