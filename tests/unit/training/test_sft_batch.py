"""Which examples share a micro-batch, and what they have in common there."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from megatron_resrl.config.schema import (
    ModelConfig,
    OptimizerConfig,
    ParallelConfig,
    PrecisionConfig,
)
from megatron_resrl.config.schema_sft import SftBatchConfig
from megatron_resrl.config.shared_prompts import Sharing
from megatron_resrl.data.fine_tuning import Example
from megatron_resrl.data.records import PromptRecord
from megatron_resrl.policy.cross_entropy import TokenLoss
from megatron_resrl.policy.policy import Policy
from megatron_resrl.training.sft_batch import supervised_batch

RECORD = PromptRecord(0, [], None, "a", {})
LENGTHS = (5, 9, 3, 7)


@pytest.fixture
def examples() -> list[Example]:
    ids = [np.arange(length, dtype=np.int32) for length in LENGTHS]
    return [Example(each, each > 1, RECORD) for each in ids]


def parts(examples: list[Example], **settings: object) -> list[tuple[int, ...]]:
    return [tuple(part) for part in supervised_batch(examples, SftBatchConfig(**settings), 8).parts]


@pytest.mark.setting("sft:batch.tokens_per_micro_batch")
def test_supervised_batch_fills_the_token_budget(examples):
    # The last token of each is never fed: 4, 8, 2 and 6 tokens.
    assert parts(examples) == [(0,), (1,), (2, 3)]
    assert parts(examples, tokens_per_micro_batch=12) == [(0, 1), (2, 3)]


@pytest.mark.setting("sft:batch.micro_batch_size", "sft:batch.sequence_packing")
def test_supervised_batch_counts_conversations_without_packing(examples):
    assert parts(examples, sequence_packing=False, micro_batch_size=3) == [(0, 1, 2), (3,)]


def test_supervised_batch_learns_the_targets_alone(examples):
    batch = supervised_batch(examples, SftBatchConfig(), 8)
    assert batch.num_targets == sum(length - 2 for length in LENGTHS)
    assert batch.tokens.loss_mask[0].tolist() == [False, True, True, True, *[False] * 4]


def conversations() -> list[Example]:
    """Two with a system message and a first turn in common, two with the system message alone."""
    generator = np.random.default_rng(3)

    def draw(count: int) -> list[int]:
        return generator.integers(0, 60, count).tolist()

    system, turn = draw(9), draw(6)
    rows = [[*system, *turn, *draw(5)], [*system, *draw(8)], [*system, *turn, *draw(3)]]
    rows += [[*system, *draw(2)], draw(7)]
    # Every second token behind the system message is learned, in what is shared, too.
    ids = [np.array(row, dtype=np.int32) for row in rows]
    return [Example(each, np.arange(len(each)) % 2 == 1, RECORD) for each in ids]


def test_supervised_batch_feeds_what_is_shared_once():
    settings = SftBatchConfig(tokens_per_micro_batch=60)
    batch = supervised_batch(conversations(), settings, 60, prefix_multiple=1)
    # Four conversations share the system message: more than two that share a turn behind it.
    assert batch.shared_tokens == 3 * 9
    assert len(batch.parts) == 1
    assert len(supervised_batch(conversations(), settings, 60).parts) == 2


@pytest.mark.parametrize("packing", [True, False], ids=["packed", "padded"])
def test_shared_prefixes_give_the_gradients_of_copies(qwen3_on_one_rank: Path, packing):
    settings = SftBatchConfig(
        tokens_per_micro_batch=60 if packing else None, sequence_packing=packing, micro_batch_size=5
    )
    found = {}
    for asked in ("never", "auto"):
        policy = Policy.build(
            ModelConfig(path=str(qwen3_on_one_rank)),
            ParallelConfig(),
            PrecisionConfig("fp32"),
            optimizer=OptimizerConfig(),
            sequence_packing=packing,
            sharing=Sharing(asked, "batch.shared_prefixes"),
        )
        batch = supervised_batch(conversations(), settings, 60, policy.prefix_multiple)
        micro_batches = policy.micro_batches_of(batch.tokens, batch.parts)
        result = policy.fit(micro_batches, TokenLoss(1 / batch.num_targets, 1e-2))
        gradients = torch.cat([buffer.grad_data for buffer in policy.chunks[0].buffers])
        sums = torch.stack(result.collected).sum(0)
        found[asked] = sums / batch.num_targets, gradients.clone(), batch.shared_tokens
    assert (found["never"][2], found["auto"][2]) == (None, 3 * 9)
    for copies, shared in zip(*(each[:2] for each in found.values()), strict=True):
        largest = copies.abs().max().clamp_min(1)
        assert float((shared - copies).abs().max() / largest) <= 2e-6
