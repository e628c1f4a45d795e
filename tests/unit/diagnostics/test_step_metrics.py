"""Metrics of a step: when they are taken, and what they count."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from one_step import step_recipe, take_step
from tiny_rollouts import LENGTHS, SCORES, rollouts

from megatron_resrl.diagnostics.step_metrics import batch_metrics
from megatron_resrl.rollout.batch import RolloutBatch
from megatron_resrl.rollout.worker import build_policy

DIAGNOSIS = ("interference/", "lld/", "resrl/spectrum_")


def test_diagnosis_is_made_every_so_many_steps(qwen3_on_one_rank: Path) -> None:
    recipe = step_recipe(qwen3_on_one_rank, diagnose_every=2, interference_tokens=5)
    policy = build_policy(recipe)
    samples, _ = rollouts()
    diagnosed = []
    for step in (1, 2, 3):
        names = take_step(policy, recipe, samples, step).metrics
        found = [any(name.startswith(kind) for name in names) for kind in DIAGNOSIS]
        diagnosed.append(found)
    assert diagnosed == [[False] * 3, [True] * 3, [False] * 3]


def test_batch_metrics_count_responses_tokens_and_groups() -> None:
    samples, positive = rollouts()
    samples[0] = replace(samples[0], timed_out=True)
    samples[1] = replace(samples[1], killed=True)
    # The third group is all wrong: no advantage.
    advantages = positive.double() - 0.5
    advantages[8:12] = 0
    scores = [score for group in SCORES for score in group]
    lengths = [length for group in LENGTHS for length in group]
    assert batch_metrics(RolloutBatch.from_samples(samples), advantages) == {
        "reward/mean": pytest.approx(sum(scores) / 16),
        "reward/score_mean": pytest.approx(sum(scores) / 16),
        "reward/timeouts": 1,
        "reward/killed": 1,
        "rollout/nonzero_advantage_groups": 3 / 4,
        "response/length_mean": pytest.approx(sum(lengths) / 16),
        "response/length_max": 14,
        "response/truncated": 1,
    }
