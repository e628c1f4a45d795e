"""Who trains on what: mini-batches of whole groups, and each data-parallel replica's share.

Shapes: B responses of the step.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from megatron.core import parallel_state
from torch import Tensor

from megatron_resrl.algorithms import Aggregation, token_coefficients
from megatron_resrl.data.balance import deal_groups
from megatron_resrl.policy.families import family_of
from megatron_resrl.policy.model_shape import ModelShape
from megatron_resrl.policy.policy import Policy
from megatron_resrl.policy.prefixes import FedLength
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


def balanced_mini_batches(
    group_ids: Tensor, positive: Tensor, has_loss: Tensor, count: int
) -> list[list[int]]:
    """Deals the step's groups so that every mini-batch has about the same surplus of positives.

    The surplus is the number of positive responses less that of negative ones, of those that have a
    loss: signals of both signs can cancel within each update (arXiv 2605.08666, which keeps the
    groups whole and balances positive and negative responses of an update, and does not say by
    which procedure).

    Args:
        group_ids: [B] int64, from 0 without gaps.
        positive: [B] bool.
        has_loss: [B] bool.
        count: Mini-batches, as many groups in each; groups that are left over are in none.

    Returns:
        Rows of each mini-batch, ascending.
    """
    groups = int(group_ids.max()) + 1
    sign_B = torch.where(positive, 1, -1) * has_loss
    surplus_G = torch.zeros(groups, dtype=torch.int64).index_add_(0, group_ids, sign_B)
    surplus_G = surplus_G[: groups // count * count]
    # From 0 on, for dealing: all mini-batches have as many groups, and are raised by as much.
    hands = deal_groups((surplus_G - surplus_G.min()).tolist(), count)
    return [torch.isin(group_ids, torch.tensor(hand)).nonzero()[:, 0].tolist() for hand in hands]


@dataclass(frozen=True)
class Share:
    """What one data-parallel replica has of a step."""

    rows: list[int]
    """Rows of the step's batch, mini-batch by mini-batch."""
    mini_batches: list[MiniBatch]
    """With the rows that they have in `batch.select` of `rows`."""
    imbalance: float
    """Cost of the replica with the most of it over the mean of all, mean over the mini-batches."""


def shard_groups(
    batch: RolloutBatch,
    mini_batches: Sequence[list[int]],
    cost: Callable[[int], float],
    lengths: Sequence[FedLength],
) -> Share:
    """Gives this data-parallel replica its groups of each mini-batch.

    Args:
        batch: Of the step.
        mini_batches: Rows of each.
        cost: Tokens of a sequence -> what it costs, in any unit; replicas get about as much.
        lengths: [B] what the model is fed of each response.
    """
    replicas = parallel_state.get_data_parallel_world_size()
    rows: list[int] = []
    parts, imbalances = [], []
    for indices in mini_batches:
        groups = _groups(batch, indices)
        loads = [cost_of([lengths[index] for index in group], cost) for group in groups]
        hands = deal_groups(loads, replicas)
        own = [
            index
            for group in hands[parallel_state.get_data_parallel_rank()]
            for index in groups[group]
        ]
        parts.append(MiniBatch(indices, list(range(len(rows), len(rows) + len(own)))))
        rows += own
        most = max(sum(loads[group] for group in hand) for hand in hands)
        imbalances.append(most * replicas / sum(loads))
    return Share(rows, parts, sum(imbalances) / len(imbalances))


def cost_of(lengths: Sequence[FedLength], cost: Callable[[int], float]) -> float:
    """Of responses whose shared prefixes are fed once; a causal model's cost of a prefix is that of
    a sequence which ends with it."""
    whole = sum(cost(length.tokens) for length in lengths)
    shared = [length for length in lengths if length.shared]
    prefixes = {length.prefix: cost(length.shared) for length in shared}
    return whole - sum(prefixes[length.prefix] for length in shared) + sum(prefixes.values())


def sequence_cost(policy: Policy) -> Callable[[int], float]:
    """Floating-point operations of training on a sequence, by its length."""
    shape = ModelShape.of(family_of(policy.hf_config))
    return lambda length: length * shape.training_flops(length)


def _groups(batch: RolloutBatch, indices: Sequence[int]) -> list[list[int]]:
    members: dict[int, list[int]] = {}
    for index in indices:
        members.setdefault(int(batch.group_ids[index]), []).append(index)
    return list(members.values())


def loss_coefficients(
    batch: RolloutBatch,
    mini_batches: Sequence[list[int]],
    aggregation: Aggregation,
    counted: Tensor,
    max_response_length: int,
) -> Tensor:
    """What a generated token of each response counts, with the mini-batches' denominators.

    Excluded responses are in no denominator, as in verl's `agg_loss`: the loss is a mean over what
    it is made of.

    Args:
        batch: Of the step.
        mini_batches: Rows of each.
        aggregation: How the losses of tokens are averaged.
        counted: [B] bool, the responses that the algorithm averages over.
        max_response_length: Most tokens that a response can have.

    Returns:
        [B] float64; 0 for excluded responses and those that are not counted.
    """
    coefficients_B = torch.zeros(len(batch), dtype=torch.float64)
    counted_B = counted & ~batch.excluded
    for indices in mini_batches:
        rows = [index for index in indices if counted_B[index]]
        if rows:
            lengths = batch.num_generated_tokens[rows]
            coefficients_B[rows] = token_coefficients(
                lengths,
                aggregation=aggregation,
                global_tokens=int(lengths.sum()),
                global_responses=len(rows),
                max_length=max_response_length,
            )
    return coefficients_B
