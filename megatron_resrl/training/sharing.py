"""Who trains on what: mini-batches of whole groups, dealt to the data-parallel replicas."""

from __future__ import annotations

from collections.abc import Sequence

from megatron.core import parallel_state

from megatron_resrl.data.balance import deal_groups
from megatron_resrl.rollout.collect import Sample


def split_into_mini_batches(samples: Sequence[Sample], count: int) -> list[list[int]]:
    """Cuts the step's groups, in order, into `count` mini-batches of whole groups.

    Returns:
        Sample indices of each mini-batch.
    """
    groups = max(sample.group for sample in samples) + 1
    per_batch = groups // count
    return [
        [
            index
            for index, sample in enumerate(samples)
            if batch * per_batch <= sample.group < (batch + 1) * per_batch
        ]
        for batch in range(count)
    ]


def own_share(samples: Sequence[Sample], mini_batch: Sequence[int]) -> list[int]:
    """The sample indices of a mini-batch that this data-parallel replica trains on.

    Args:
        samples: Of the step.
        mini_batch: Indices of whole groups.
    """
    replicas = parallel_state.get_data_parallel_world_size()
    replica = parallel_state.get_data_parallel_rank()
    members: dict[int, list[int]] = {}
    for index in mini_batch:
        members.setdefault(samples[index].group, []).append(index)
    groups = list(members.values())
    tokens = [sum(len(samples[index].tokens) for index in group) for group in groups]
    hand = deal_groups(tokens, replicas)[replica]
    return [index for group in hand for index in groups[group]]
