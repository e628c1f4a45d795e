"""The ranks that share prompt groups, with their collectives and a count of the bytes sent."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor


class TokenShardGroup:
    """Ranks that have tokens of the same groups: different tokens, or copies of the same tokens.

    Where several ranks have copies of a token (tensor parallelism without sequence parallelism),
    each takes a share: `ranks_per_token` ranks divide the tokens by index. Every token belongs to
    exactly one rank, so that no token is counted twice.

    Results are gathered in rank order and summed in that order, so a repeated run gives the same
    bits.

    Attributes:
        size: Number of ranks.
        rank: Index of this rank in the group.
        ranks_per_token: Ranks that have a copy of the same token.
        token_rank: Index of this rank among the ranks that have copies of its tokens.
        sent_bytes: Payload sent to other ranks so far. An all-gather sends a tensor to each other
            rank; an all-reduce counts as the usual ring.
    """

    def __init__(
        self,
        process_group: dist.ProcessGroup | None = None,
        *,
        ranks_per_token: int = 1,
        token_rank: int = 0,
    ) -> None:
        """
        Args:
            process_group: All ranks; None: this process has all tokens.
            ranks_per_token: Number of ranks that have a copy of each token.
            token_rank: Index of this rank among the ranks with the same tokens.
        """
        self.process_group = process_group
        self.size = 1 if process_group is None else dist.get_world_size(process_group)
        self.rank = 0 if process_group is None else dist.get_rank(process_group)
        self.ranks_per_token = ranks_per_token
        self.token_rank = token_rank
        self.sent_bytes = 0

    def groups_of_rank(self, groups: int, rank: int | None = None) -> slice:
        """The groups whose eigen-problem a rank solves, of `groups`; default: this rank."""
        return slice(self.rank if rank is None else rank, groups, self.size)

    def all_gather(self, tensor: Tensor) -> Tensor:
        """Stacks one equally shaped tensor of every rank.

        Args:
            tensor: [...], same shape and dtype on all ranks.

        Returns:
            [ranks, ...], in rank order, the same on all ranks.
        """
        if self.size == 1:
            return tensor.unsqueeze(0)
        gathered = tensor.new_empty((self.size, *tensor.shape))
        dist.all_gather(list(gathered.unbind(0)), tensor.contiguous(), group=self.process_group)
        self.sent_bytes += tensor.nbytes * (self.size - 1)
        return gathered

    def all_to_all(self, tensor: Tensor, send: Sequence[int], receive: Sequence[int]) -> Tensor:
        """Sends consecutive parts of the first dimension to all ranks.

        Args:
            tensor: [sum(send), ...] parts for rank 0, 1, ...
            send: Length of the part for every rank.
            receive: Length of the part from every rank, known beforehand.

        Returns:
            [sum(receive), ...], rank 0's part first.
        """
        received = tensor.new_empty((sum(receive), *tensor.shape[1:]))
        # As bytes, because gloo does not know every number format.
        dist.all_to_all_single(
            _as_bytes(received),
            _as_bytes(tensor),
            [count * _row_bytes(tensor) for count in receive],
            [count * _row_bytes(tensor) for count in send],
            group=self.process_group,
        )
        self.sent_bytes += (sum(send) - send[self.rank]) * _row_bytes(tensor)
        return received

    def sum_over_ranks(self, tensor: Tensor) -> Tensor:
        """All-reduce sum, in place. Exact where at most one rank has a nonzero value."""
        if self.size > 1:
            dist.all_reduce(tensor, group=self.process_group)
            self.sent_bytes += 2 * tensor.nbytes * (self.size - 1) // self.size
        return tensor


def _row_bytes(tensor: Tensor) -> int:
    return tensor[:1].nbytes if len(tensor) else tensor.new_empty((1, *tensor.shape[1:])).nbytes


def _as_bytes(tensor: Tensor) -> Tensor:
    return tensor.contiguous().view(-1).view(torch.uint8)
