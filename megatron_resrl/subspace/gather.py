"""All-gathers whose result is ordered by rank, so that sums over ranks repeat bitwise."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor


def group_size(process_group: dist.ProcessGroup | None) -> int:
    """Number of ranks in `process_group`; None means everything is local."""
    return 1 if process_group is None else dist.get_world_size(process_group)


def all_gather(tensor: Tensor, process_group: dist.ProcessGroup | None) -> Tensor:
    """Stacks one equally shaped tensor of every rank.

    Args:
        tensor: [...] local tensor, same shape and dtype on all ranks.
        process_group: Ranks to gather from; None returns the local tensor alone.

    Returns:
        [ranks, ...], in rank order, the same on all ranks.
    """
    ranks = group_size(process_group)
    if ranks == 1:
        return tensor.unsqueeze(0)
    gathered = tensor.new_empty((ranks, *tensor.shape))
    dist.all_gather(list(gathered.unbind(0)), tensor.contiguous(), group=process_group)
    return gathered


def all_gather_ragged(
    values_N: Tensor, counts: list[int], process_group: dist.ProcessGroup | None
) -> Tensor:
    """Joins vectors whose length differs from rank to rank.

    Args:
        values_N: [counts[this rank]] local values.
        counts: Length of every rank's vector, known to all ranks.
        process_group: Ranks to gather from; None returns the local vector.

    Returns:
        [sum(counts)], rank 0's values first.
    """
    if group_size(process_group) == 1:
        return values_N
    padded = values_N.new_zeros(max(counts))
    padded[: len(values_N)] = values_N
    rows = all_gather(padded, process_group)
    return torch.cat([row[:count] for row, count in zip(rows, counts, strict=True)])
