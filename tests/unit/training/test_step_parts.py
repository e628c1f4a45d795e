"""Mini-batches, mismatch metrics and records."""

from __future__ import annotations

import math

import pytest
import torch

from megatron_resrl.algorithms import effective_sample_size
from megatron_resrl.data.prompts import Prompt, PromptRecord
from megatron_resrl.diagnostics.mismatch import compare, measure_mismatch
from megatron_resrl.diagnostics.records import complete
from megatron_resrl.diagnostics.step_metrics import batch_metrics
from megatron_resrl.policy.prefixes import FedLength
from megatron_resrl.rollout.batch import RolloutBatch
from megatron_resrl.rollout.collect import Sample
from megatron_resrl.rollout.engine import Response
from megatron_resrl.training.sharing import cost_of, split_into_mini_batches


def _sample(
    group: int,
    log_probs: tuple[float, ...] = (-1.0,),
    score: float = 0.0,
    mask: tuple[bool, ...] | None = None,
) -> Sample:
    record = PromptRecord(group, [{"role": "user", "content": "q"}], "4", "test", {})
    tokens = tuple(range(len(log_probs)))
    response = Response(tokens, log_probs, "length", response_mask=mask)
    return Sample(group, Prompt(record, (1, 2)), response, "text", score, score, False)


def test_split_into_mini_batches_keeps_groups_whole_in_order():
    samples = [_sample(group) for group in (0, 0, 1, 1, 2, 2, 3, 3)]
    group_ids = RolloutBatch.from_samples(samples).group_ids
    assert split_into_mini_batches(group_ids, 2) == [[0, 1, 2, 3], [4, 5, 6, 7]]


def test_cost_of_a_shared_prefix_counts_once():
    def pairs(tokens: int) -> float:
        """Of queries and keys, in causal attention."""
        return tokens * (tokens + 1) / 2

    apart = [FedLength(10), FedLength(12), FedLength(7)]
    assert cost_of(apart, pairs) == pairs(10) + pairs(12) + pairs(7)
    shared = [FedLength(10, 0, 8), FedLength(12, 0, 8), FedLength(7)]
    ends = sum(range(9, 11)) + sum(range(9, 13))
    assert cost_of(shared, pairs) == pairs(8) + ends + pairs(7)


def test_mismatch_compares_engine_and_trainer_by_token():
    samples = [_sample(0, (-1.0, -2.0)), _sample(0, (-0.5,))]
    trainer = torch.tensor([[-1.0, -2.5], [-0.25, 99.0]])  # the last entry is padding
    mismatch = measure_mismatch(compare(RolloutBatch.from_samples(samples), trainer))
    assert mismatch.tokens == 3
    assert mismatch.log_prob == pytest.approx(0.75)
    assert mismatch.log_prob_max == pytest.approx(0.5)
    probabilities = [math.exp(-2) - math.exp(-2.5), math.exp(-0.25) - math.exp(-0.5)]
    assert mismatch.probability == pytest.approx(sum(probabilities))
    assert mismatch.probability_max == pytest.approx(max(probabilities))
    ratios, products = [1.0, math.exp(-0.5), math.exp(0.25)], [math.exp(-0.5), math.exp(0.25)]
    for weights, found in (ratios, mismatch.token_weights), (products, mismatch.sequence_weights):
        size = sum(weights) ** 2 / (len(weights) * sum(weight**2 for weight in weights))
        assert effective_sample_size([found]) == pytest.approx(size)
    k3 = sum(math.exp(d) - 1 - d for d in (-0.5, 0.25))
    assert mismatch.kl == pytest.approx(k3)


def test_environment_tokens_are_outside_mismatch_and_lengths():
    with_result = _sample(0, (-1.0, 0.0, 0.0, -2.0), mask=(True, False, False, True))
    samples = [with_result, _sample(0, (-0.5,))]
    trainer = torch.tensor([[-1.0, 99.0, 99.0, -2.5], [-0.25, 99.0, 99.0, 99.0]])
    mismatch = measure_mismatch(compare(RolloutBatch.from_samples(samples), trainer))
    assert mismatch.tokens == 3
    assert mismatch.log_prob == pytest.approx(0.75)
    assert mismatch.token_weights.count == 3
    metrics = batch_metrics(RolloutBatch.from_samples(samples), torch.zeros(2))
    assert metrics["response/length_mean"] == 1.5
    assert metrics["response/length_max"] == 2


def test_batch_metrics_count_groups_with_an_advantage():
    samples = [_sample(0, score=1.0), _sample(0), _sample(1), _sample(1)]
    metrics = batch_metrics(RolloutBatch.from_samples(samples), torch.tensor([1.0, -1.0, 0.0, 0.0]))
    assert metrics["rollout/nonzero_advantage_groups"] == 0.5
    assert metrics["reward/mean"] == 0.25
    assert metrics["response/truncated"] == 1.0


def test_records_complete_holds_token_ids_and_log_probs():
    records = [complete(sample) for sample in (_sample(0, (-1.0, -2.0)), _sample(1))]
    assert [record["response_ids"] for record in records] == [[0, 1], [0]]
    assert records[0]["prompt_ids"] == [1, 2]
    assert records[0]["log_probs"] == [-1.0, -2.0]
