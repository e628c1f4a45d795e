"""The two ways to the bases of a window, behind one interface.

Both take the positives of a window micro-batch by micro-batch on every rank, and give every rank
the basis of every group:

* `rows`: the sampled hidden states in the model's own number format, sent to the group's owner,
  which puts them in the order of their token numbers. The same tokens give the same bits,
  whatever ranks they came from.
* `gram`: Gram matrices, all-gathered and summed in rank order, or with several groups in a window
  reduce-scattered over the groups so that the ranks share the eigen-problems. Any number of
  tokens, and no hidden state is kept.

Shapes: G groups of the window, N the most positive tokens of a group, H hidden size, n rows.
"""

from __future__ import annotations

from typing import Literal, Protocol

import torch
from torch import Tensor

from megatron_resrl.platform.distributed import on_device
from megatron_resrl.subspace.basis import Basis, basis_from_rows, basis_from_statistics
from megatron_resrl.subspace.rows import ROWS, Padding, layer_norm, normalised_dtype
from megatron_resrl.subspace.shard_group import TokenShardGroup
from megatron_resrl.subspace.statistics import (
    Statistics,
    gather_statistics,
    scatter_statistics,
)


class Collector(Protocol):
    """Takes the positives of one window and returns the bases."""

    def add(self, hidden_nH: Tensor, group_n: Tensor, index_in_group_n: Tensor) -> None:
        """Takes tokens of this rank.

        Args:
            hidden_nH: [n, H] hidden states.
            group_n: [n] int64 on the CPU, group within the window.
            index_in_group_n: [n] int64 on the CPU, index of the token in its group.
        """

    def bases(self) -> Basis:
        """The bases of the window's groups, the same on all ranks. Collective."""

    @property
    def nbytes(self) -> int:
        """Peak memory of hidden states or statistics so far."""


class RowsCollector:
    """Sends hidden states to the group's owner."""

    def __init__(
        self, counts_G: Tensor, hidden_size: int, rank: int, ranks: TokenShardGroup, like: Tensor
    ) -> None:
        """
        Args:
            counts_G: [G] int64 on the CPU, tokens of each group on all ranks together.
            hidden_size: H.
            rank: Directions wanted.
            ranks: They hold different tokens.
            like: A tensor with the hidden states' dtype and device.
        """
        self.rank = rank
        self.ranks = ranks
        self.counts_G = counts_G
        self.own = ranks.groups_of_rank(len(counts_G))
        self.hidden_size = hidden_size
        self.width = int(counts_G.max())
        self.device, self.dtype = like.device, like.dtype
        self._normalised = normalised_dtype(like)
        self._kept: list[tuple[Tensor, Tensor, Tensor]] = []
        # A rank alone puts rows into place as they come; several exchange theirs first.
        self._rows = self._empty(len(counts_G) if ranks.size == 1 else 0)
        self.nbytes = self._rows.nbytes

    def _empty(self, groups: int) -> Tensor:
        return torch.zeros(
            groups * self.width, self.hidden_size, dtype=self._normalised, device=self.device
        )

    def add(self, hidden_nH: Tensor, group_n: Tensor, index_in_group_n: Tensor) -> None:
        """Layer-norms the rows into place; with several ranks, keeps the rows until `bases`."""
        if self.ranks.size == 1:
            place_n = on_device(group_n * self.width + index_in_group_n, self.device)
            _write(self._rows, hidden_nH, place_n)
        else:
            self._kept.append((hidden_nH, group_n, index_in_group_n))
            self.nbytes += hidden_nH.nbytes

    def bases(self) -> Basis:
        """Exchanges rows, decomposes the groups of this rank, and gathers all bases. Collective."""
        groups = len(self.counts_G[self.own])
        rows = self._rows if self.ranks.size == 1 else self._exchange(groups)
        del self._rows  # A window has its bases once.
        valid = torch.arange(self.width) < self.counts_G[self.own].unsqueeze(1)
        rows = rows.view(groups, self.width, self.hidden_size)
        own = basis_from_rows(rows, on_device(valid, self.device), self.rank) if groups else None
        return _shared(own, len(self.counts_G), self.hidden_size, self.rank, self.ranks, rows)

    def _exchange(self, groups: int) -> Tensor:
        """Sends the rows of this rank, with their places, to the owners of the groups.

        Returns:
            [groups * width, H]: the rows of the `groups` groups of this rank.
        """
        # Group g belongs to rank g % ranks and has index g // ranks there.
        group_n = torch.cat([kept[1] for kept in self._kept] or [self.counts_G[:0]])
        index_in_group_n = torch.cat([kept[2] for kept in self._kept] or [self.counts_G[:0]])
        owner_n = group_n % self.ranks.size
        place_n = group_n // self.ranks.size * self.width + index_in_group_n
        order = owner_n.argsort(stable=True)
        send = torch.bincount(owner_n, minlength=self.ranks.size)
        # How many rows come from every rank, so that the exchange needs no padding.
        receive = self.ranks.all_gather(on_device(send, self.device))[:, self.ranks.rank].tolist()
        empty = torch.empty(0, self.hidden_size, dtype=self.dtype, device=self.device)
        rows_nH = torch.cat([kept[0] for kept in self._kept] or [empty])
        self._kept = []
        rows_nH = rows_nH[on_device(order, self.device)]
        rows_nH = self.ranks.all_to_all(rows_nH, send.tolist(), receive)
        places = self.ranks.all_to_all(
            on_device(place_n[order], self.device), send.tolist(), receive
        )
        own_rows = self._empty(groups)
        _write(own_rows, rows_nH, places)
        self.nbytes = max(self.nbytes + rows_nH.nbytes, rows_nH.nbytes + own_rows.nbytes)
        return own_rows


def _write(rows: Tensor, hidden_nH: Tensor, place_n: Tensor) -> None:
    """Layer-norms hidden states into their places among the rows."""
    for hidden, places in zip(hidden_nH.split(ROWS), place_n.split(ROWS), strict=True):
        rows.index_copy_(0, places, layer_norm(hidden))


class GramCollector:
    """Accumulates Gram matrices; hidden states are not kept."""

    def __init__(
        self, counts_G: Tensor, hidden_size: int, rank: int, ranks: TokenShardGroup, like: Tensor
    ) -> None:
        """Arguments as for `RowsCollector`."""
        self.rank = rank
        self.ranks = ranks
        self.groups = len(counts_G)
        self.like = like
        self._statistics = Statistics.empty(self.groups, hidden_size, like.device)
        self.nbytes = self._statistics.nbytes

    def add(self, hidden_nH: Tensor, group_n: Tensor, index_in_group_n: Tensor) -> None:
        """Adds the rows to the groups' statistics."""
        padding = Padding.of(group_n, self.groups, hidden_nH.device)
        places = padding.pad(torch.arange(len(group_n), device=hidden_nH.device))
        for start in range(0, places.shape[1], ROWS):
            part, valid = (t[:, start : start + ROWS] for t in (places, padding.valid_GW))
            self._statistics.add(layer_norm(hidden_nH[part]), valid)

    def bases(self) -> Basis:
        """Sums the statistics over the ranks, and decomposes them. Collective."""
        statistics = self._statistics
        del self._statistics  # A window has its bases once.
        if self.ranks.size == 1 or self.groups == 1:
            return basis_from_statistics(gather_statistics(statistics, self.ranks), self.rank)
        hidden_size = statistics.mean_GH.shape[1]
        # Several groups: each owner gets the sum for its groups and solves their eigen-problems.
        own = scatter_statistics(statistics, self.ranks)
        self.nbytes = max(self.nbytes, statistics.nbytes + own.nbytes)
        basis = basis_from_statistics(own, self.rank) if len(own.mean_GH) else None
        return _shared(basis, self.groups, hidden_size, self.rank, self.ranks, own.mean_GH)


COLLECTORS: dict[str, type[RowsCollector] | type[GramCollector]] = {
    "rows": RowsCollector,
    "gram": GramCollector,
}

# Positive tokens per hidden dimension up to which rows take less time and little enough memory:
# measured from 2 to 32, where they take 0.5 to 0.95 of the time of Gram matrices
# (docs/subspace.md).
ROWS_PER_DIMENSION = 32


def automatic_method(positive_tokens: int, hidden_size: int) -> Literal["rows", "gram"]:
    """The method of `resrl.subspace_method: auto`.

    Rows take less time at all measured sizes, but memory in proportion to the tokens; Gram matrices
    take the same memory for any number of them.

    Args:
        positive_tokens: Largest number of sampled positive tokens of a group.
        hidden_size: H.
    """
    return "gram" if positive_tokens > ROWS_PER_DIMENSION * hidden_size else "rows"


def _shared(
    own: Basis | None,
    groups: int,
    hidden_size: int,
    rank: int,
    ranks: TokenShardGroup,
    like: Tensor,
) -> Basis:
    """Gives every rank the bases of all groups, from the owners."""
    if own is not None and ranks.size == 1:
        return own  # A rank alone owns every group.
    most = -(-groups // ranks.size)
    # Mean, directions, eigenvalues and trace of each group, concatenated.
    width = hidden_size * (rank + 1) + rank + 1
    packed = torch.zeros(most, width, dtype=torch.float64, device=like.device)
    if own is not None:
        parts = (own.mean_GH, own.vectors_GHK, own.eigenvalues_GK, own.trace_G.unsqueeze(1))
        packed[: len(own.mean_GH)] = torch.cat([part.flatten(1) for part in parts], 1)
    # Group g is the (g // ranks)-th of rank g % ranks.
    gathered = ranks.all_gather(packed).transpose(0, 1).flatten(0, 1)[:groups]
    mean, vectors, values, trace = gathered.split((hidden_size, hidden_size * rank, rank, 1), dim=1)
    return Basis(mean, vectors.view(groups, hidden_size, rank), values, trace.squeeze(1))
