"""The batch holds what the samples say."""

from __future__ import annotations

from dataclasses import replace

import torch
from tiny_rollouts import LENGTHS, LONGEST, rollouts, with_engine_log_probs

from megatron_resrl.rollout.batch import RolloutBatch


def test_rollout_batch_holds_every_token_of_the_samples() -> None:
    samples = with_engine_log_probs(rollouts(masked=True)[0])
    batch = RolloutBatch.from_samples(samples)
    assert batch.loss_mask.shape == (len(samples), LONGEST)
    for row, sample in enumerate(samples):
        response, length = sample.response, len(sample.response.token_ids)
        whole = [*sample.prompt.token_ids, *response.token_ids]
        assert batch.token_ids[row].tolist() == whole + [0] * (
            batch.token_ids.shape[1] - len(whole)
        )
        assert batch.loss_mask[row, :length].tolist() == list(response.response_mask)
        assert not batch.loss_mask[row, length:].any()
        generated = batch.loss_mask[row, :length]
        expected = torch.tensor(response.log_probs, dtype=torch.float64)[generated]
        assert torch.equal(batch.rollout_log_probs[row, :length][generated], expected)
        assert not batch.rollout_log_probs[row][~batch.loss_mask[row]].any()
    assert batch.response_lengths.tolist() == [length for group in LENGTHS for length in group]
    assert batch.num_generated_tokens.tolist() == [s.response.num_generated_tokens for s in samples]


def test_rollout_batch_keeps_mask_and_exclusion_apart() -> None:
    samples, _ = rollouts()
    batch = RolloutBatch.from_samples([replace(samples[0], excluded=True), *samples[1:]])
    assert batch.excluded.nonzero().flatten().tolist() == [0]
    assert batch.loss_mask[0].sum() == LENGTHS[0][0]


def test_rollout_batch_names_responses_after_a_selection() -> None:
    samples, _ = rollouts()
    batch = RolloutBatch.from_samples(samples)
    assert batch.name(6) == "response 2 to prompt 1"
    assert batch.select([12, 6]).name(1) == "response 2 to prompt 1"
    assert batch.select([12, 6]).group_ids.tolist() == [3, 1]
    assert batch.select([12, 6]).scores.tolist() == [samples[12].score, samples[6].score]
