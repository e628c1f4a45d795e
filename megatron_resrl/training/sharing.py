"""Who trains on what: mini-batches of whole groups, and each data-parallel replica's share.

Shapes: B responses of the step.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from megatron.core import parallel_state
from torch import Tensor

from megatron_resrl.algorithms import Aggregation, token_coefficients
from megatron_resrl.data.balance import deal_groups
from megatron_resrl.rollout.batch import RolloutBatch


@dataclass(frozen=True)
class MiniBatch:
    """The responses of one optimizer step."""

    indices: list[int]
    """Rows of the step's batch, of all replicas."""
    rows: list[int]
    """Rows of this replica's batch."""


def split_into_mini_batches(group_ids: Tensor, count: int) -> list[list[int]]:
    """Cuts the step's groups, in order, into `count` mini-batches of whole groups.

    Args:
        group_ids: [B] int64, from 0 without gaps.
        count: Mini-batches; groups that are left over by the division are in none.

    Returns:
        Rows of each mini-batch.
    """
    groups = int(group_ids.max()) + 1
    number_B = group_ids // (groups // count)
    return [(number_B == number).nonzero().flatten().tolist() for number in range(count)]


def shard_groups(
    batch: RolloutBatch, mini_batches: Sequence[list[int]]
) -> tuple[list[int], list[MiniBatch]]:
    """Gives this data-parallel replica its groups of each mini-batch.

    Returns:
        The rows of the step's batch that are this replica's, mini-batch by mini-batch; and the
        mini-batches, with the rows that these have in `batch.select` of them.
    """
    share: list[int] = []
    parts = []
    for indices in mini_batches:
        own = _replica_share(batch, indices)
        parts.append(MiniBatch(indices, list(range(len(share), len(share) + len(own)))))
        share += own
    return share, parts


def _replica_share(batch: RolloutBatch, indices: Sequence[int]) -> list[int]:
    members: dict[int, list[int]] = {}
    for index in indices:
        members.setdefault(int(batch.group_ids[index]), []).append(index)
    groups = list(members.values())
    length_B = batch.prompt_lengths + batch.response_lengths
    tokens = [int(length_B[group].sum()) for group in groups]
    replica = parallel_state.get_data_parallel_rank()
    hand = deal_groups(tokens, parallel_state.get_data_parallel_world_size())[replica]
    return [index for group in hand for index in groups[group]]


def loss_coefficients(
    batch: RolloutBatch, mini_batches: Sequence[list[int]], aggregation: Aggregation
) -> Tensor:
    """What a generated token of each response counts, with the mini-batches' denominators.

    Excluded responses are in no denominator, as in verl's `agg_loss`: the loss is a mean over what
    it is made of.

    Returns:
        [B] float64; 0 for excluded responses.
    """
    coefficients_B = torch.zeros(len(batch), dtype=torch.float64)
    for indices in mini_batches:
        counted = [index for index in indices if not batch.excluded[index]]
        if counted:
            lengths = batch.num_generated_tokens[counted]
            coefficients_B[counted] = token_coefficients(
                lengths,
                aggregation=aggregation,
                global_tokens=int(lengths.sum()),
                global_responses=len(counted),
            )
    return coefficients_B
