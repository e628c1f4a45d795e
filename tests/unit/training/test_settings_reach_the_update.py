"""Into how many micro-batches, and of what form, an update is cut."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from one_step import training_batch
from tiny_rollouts import LONGEST, rollouts

from megatron_resrl.config.schema import AlgorithmConfig, ModelConfig, PrecisionConfig, Recipe
from megatron_resrl.rollout.batch import RolloutBatch
from megatron_resrl.rollout.worker import build_policy
from megatron_resrl.training.algorithm import algorithm_of
from megatron_resrl.training.rl_step import StepSettings
from megatron_resrl.training.scoring import Scores
from megatron_resrl.training.updating import Targets, update_policy


def recipe_of(model: Path, **algorithm: object) -> Recipe:
    return Recipe(
        model=ModelConfig(path=str(model)),
        precision=PrecisionConfig("fp32"),
        algorithm=AlgorithmConfig(name="grpo", **algorithm),
    )


@pytest.mark.setting("algorithm.micro_batch_size")
def test_update_policy_cuts_an_update_into_micro_batches(qwen3_on_one_rank: Path) -> None:
    recipe = recipe_of(qwen3_on_one_rank, micro_batch_size=8)
    samples, _ = rollouts()
    batch = training_batch(samples, torch.zeros(len(samples), dtype=torch.bool))
    ones = torch.ones(len(samples), LONGEST)
    targets = Targets.of(batch, Scores(-ones, ones), ones, ones)
    policy = build_policy(recipe)
    result, sums = update_policy(
        policy,
        algorithm_of(recipe),
        batch,
        range(len(samples)),
        targets,
        StepSettings.from_recipe(recipe).passes,
    )
    assert sums.tokens == sum(len(sample.response.token_ids) for sample in samples)
    assert len(result.collected) == len(samples) // 8 == 2


@pytest.mark.setting("algorithm.sequence_packing")
def test_micro_batches_packed_stand_behind_each_other(qwen3_on_one_rank: Path) -> None:
    samples, _ = rollouts()
    tokens = RolloutBatch.from_samples(samples[:4])
    shapes = {}
    for packed in (False, True):
        recipe = recipe_of(qwen3_on_one_rank, sequence_packing=packed)
        policy = build_policy(recipe, trainable=False)
        (batch,) = policy.micro_batches(tokens, 4)
        shapes[packed] = tuple(batch.tokens.shape)
    assert shapes[False][0] == 4
    assert shapes[True][0] == 1
    assert shapes[True][1] > 2 * shapes[False][1]
