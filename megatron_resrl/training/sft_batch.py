"""Which conversations a replica takes of a step, and how they share micro-batches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from megatron.core import parallel_state

from megatron_resrl.config.schema_sft import SftBatchConfig
from megatron_resrl.data.balance import deal_groups
from megatron_resrl.data.fine_tuning import Example
from megatron_resrl.policy.batches import TokenBatch, fed_sequences, parts_in_order
from megatron_resrl.policy.prefixes import rows_that_begin_alike
from megatron_resrl.policy.token_budget import MicroBatchLimit, pack
from megatron_resrl.training.supervised import SupervisedBatch


@dataclass(frozen=True)
class Conversations(TokenBatch):
    """Sequences of which any may begin alike, with no prompt that says which."""

    def rows_together(self, fed: Sequence[int], multiple: int) -> list[list[int]]:
        """See `TokenBatch.rows_together`."""
        return rows_that_begin_alike(self.token_ids, fed, multiple)


def replica_share(examples: Sequence[Example]) -> list[Example]:
    """This data-parallel replica's part of a global batch, about as many tokens as the others'.

    Args:
        examples: Of the whole step, the same on all ranks; as many for each replica.
    """
    lengths = [len(example) for example in examples]
    hands = deal_groups(lengths, parallel_state.get_data_parallel_world_size())
    return [examples[index] for index in hands[parallel_state.get_data_parallel_rank()]]


def supervised_batch(
    examples: Sequence[Example],
    batch: SftBatchConfig,
    max_length: int,
    prefix_multiple: int | None = None,
) -> SupervisedBatch:
    """Cuts a replica's examples into micro-batches.

    Args:
        examples: Any number.
        batch: The recipe's section.
        max_length: `data.max_length`, the default token budget.
        prefix_multiple: See `Policy.prefix_multiple`; None: nothing is shared.
    """
    tokens = Conversations.from_sequences([example.sequence for example in examples])
    shared = prefix_multiple is not None
    lengths = fed_sequences(tokens, shared=shared, multiple=prefix_multiple or 1)
    if batch.sequence_packing:
        parts = pack(lengths, batch.tokens_per_micro_batch or max_length)
    else:
        parts = parts_in_order(range(len(examples)), batch.micro_batch_size)
    fed = MicroBatchLimit(len(examples)).fed(parts, lengths)
    return SupervisedBatch(tokens, parts, fed.shared if shared else None)
