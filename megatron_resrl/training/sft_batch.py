"""Which conversations a replica takes of a step, and how they share micro-batches."""

from __future__ import annotations

from collections.abc import Sequence

from megatron.core import parallel_state

from megatron_resrl.config.schema_sft import SftBatchConfig
from megatron_resrl.data.balance import deal_groups
from megatron_resrl.data.fine_tuning import Example
from megatron_resrl.policy.batches import TokenBatch, parts_in_order
from megatron_resrl.policy.token_budget import pack
from megatron_resrl.training.supervised import SupervisedBatch


def replica_share(examples: Sequence[Example]) -> list[Example]:
    """This data-parallel replica's part of a global batch, about as many tokens as the others'.

    Args:
        examples: Of the whole step, the same on all ranks; as many for each replica.
    """
    lengths = [len(example) for example in examples]
    hands = deal_groups(lengths, parallel_state.get_data_parallel_world_size())
    return [examples[index] for index in hands[parallel_state.get_data_parallel_rank()]]


def supervised_batch(
    examples: Sequence[Example], batch: SftBatchConfig, max_length: int
) -> SupervisedBatch:
    """Cuts a replica's examples into micro-batches.

    Args:
        examples: Any number.
        batch: The recipe's section.
        max_length: `data.max_length`, the default token budget.
    """
    tokens = TokenBatch.from_sequences([example.sequence for example in examples])
    if batch.sequence_packing:
        # The last token of a sequence is predicted, never fed.
        fed = [len(example) - 1 for example in examples]
        parts = pack(fed, batch.tokens_per_micro_batch or max_length)
    else:
        parts = parts_in_order(range(len(examples)), batch.micro_batch_size)
    return SupervisedBatch(tokens, parts)
