"""Which examples share a micro-batch."""

from __future__ import annotations

import numpy as np
import pytest

from megatron_resrl.config.schema_sft import SftBatchConfig
from megatron_resrl.data.fine_tuning import Example
from megatron_resrl.data.records import PromptRecord
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
