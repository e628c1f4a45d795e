"""Into how many micro-batches, and of what form, an update is cut."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from one_step import training_batch
from tiny_rollouts import LONGEST, rollouts

from megatron_resrl.config.schema import AlgorithmConfig, ModelConfig, PrecisionConfig, Recipe
from megatron_resrl.errors import InputError
from megatron_resrl.observe.timers import PhaseTimers
from megatron_resrl.policy.batches import MicroBatch, fed_lengths
from megatron_resrl.policy.policy import Policy
from megatron_resrl.rollout.batch import RolloutBatch
from megatron_resrl.rollout.worker import build_policy
from megatron_resrl.training.algorithm import algorithm_of
from megatron_resrl.training.rl_step import StepSettings
from megatron_resrl.training.scoring import Scores, score_batch
from megatron_resrl.training.updating import Targets, update_policy


def recipe_of(model: Path, **algorithm: object) -> Recipe:
    return Recipe(
        model=ModelConfig(path=str(model)),
        precision=PrecisionConfig("fp32"),
        algorithm=AlgorithmConfig(name="grpo", **{"shared_prompts": "never"} | algorithm),
    )


@pytest.mark.setting("algorithm.micro_batch_size")
def test_update_policy_cuts_an_update_into_micro_batches(qwen3_on_one_rank: Path) -> None:
    recipe = recipe_of(qwen3_on_one_rank, micro_batch_size=8)
    samples, _ = rollouts()
    batch = training_batch(samples, torch.zeros(len(samples), dtype=torch.bool))
    ones = torch.ones(len(samples), LONGEST)
    targets = Targets.of(batch, Scores(-ones, ones), ones, ones)
    policy = build_policy(recipe)
    result, sums, fed = update_policy(
        policy,
        algorithm_of(recipe),
        batch,
        range(len(samples)),
        targets,
        StepSettings.from_recipe(recipe).passes,
    )
    assert sums.tokens == sum(len(sample.response.token_ids) for sample in samples)
    assert len(result.collected) == len(samples) // 8 == 2
    lengths = fed_lengths(batch)
    assert fed.tokens == sum(lengths)
    assert fed.positions == 8 * (max(lengths[:8]) + max(lengths[8:]))


@pytest.mark.setting("algorithm.max_tokens_per_micro_batch")
@pytest.mark.setting("algorithm.max_tokens_per_scoring_micro_batch")
def test_budgets_bound_micro_batches_of_updates_and_scores(qwen3_on_one_rank: Path) -> None:
    budget = {"micro_batch_size": 16, "max_tokens_per_micro_batch": 64, "sequence_packing": True}
    samples, _ = rollouts()
    batch = training_batch(samples, torch.zeros(len(samples), dtype=torch.bool))
    lengths = fed_lengths(batch)
    for scoring in (None, 150):
        recipe = recipe_of(qwen3_on_one_rank, **budget, max_tokens_per_scoring_micro_batch=scoring)
        passes, policy = StepSettings.from_recipe(recipe).passes, build_policy(recipe)
        shown = Shown(policy)
        score_batch(policy, batch, passes, PhaseTimers())
        ones = torch.ones(len(samples), LONGEST)
        targets = Targets.of(batch, Scores(-ones, ones), ones, ones)
        rows = range(len(samples))
        update_policy(policy, algorithm_of(recipe), batch, rows, targets, passes)
        scored, updated = shown.positions
        assert max(scored) <= (scoring or 64)
        assert (max(scored) > 64) == (scoring is not None)
        assert max(updated) <= 64
        # First-fit decreasing: no two micro-batches would fit into one.
        assert len(updated) == -(-sum(lengths) // 64)


class Shown:
    """Positions of the micro-batches of each pass of a policy."""

    def __init__(self, policy: Policy) -> None:
        self.positions: list[list[int]] = []
        self._whole = policy.micro_batches_of
        policy.micro_batches_of = self.note

    def note(self, *arguments: object) -> list[MicroBatch]:
        made = self._whole(*arguments)
        self.positions.append([each.tokens.numel() for each in made])
        return made


@pytest.mark.setting("algorithm.shared_prompts")
def test_shared_prompts_stand_in_a_micro_batch_once(qwen3_on_one_rank: Path, caplog) -> None:
    samples, _ = rollouts()
    tokens = RolloutBatch.from_samples(samples[:4])
    prompt, lengths = len(samples[0].prompt.token_ids), fed_lengths(tokens)
    caplog.set_level("INFO")
    recipe = recipe_of(qwen3_on_one_rank, shared_prompts="auto")
    (batch,) = build_policy(recipe).micro_batches(tokens, 4)
    assert batch.tokens.numel() == sum(lengths) - 3 * prompt
    assert "what sequences of a micro-batch have in common is fed once" in caplog.text
    for exact in (
        recipe_of(qwen3_on_one_rank, shared_prompts="never"),
        recipe_of(qwen3_on_one_rank, shared_prompts="auto", micro_batch_size=1),
        replace(recipe, model=replace(recipe.model, hidden_dropout=0.1)),
    ):
        (batch,) = build_policy(exact).micro_batches(tokens, 4)
        assert batch.tokens.shape == (4, max(lengths))
    assert "its own copy of the prompt: model.hidden_dropout is 0.1, and every" in caplog.text
    always = replace(exact, algorithm=replace(exact.algorithm, shared_prompts="always"))
    with pytest.raises(InputError, match=r"shared_prompts = 'always', but model.hidden_dropout"):
        build_policy(always)


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
