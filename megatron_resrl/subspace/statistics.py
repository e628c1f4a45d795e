"""The additive statistics of groups' positive tokens, for all groups of a window at once.

Shapes: G groups, W rows of a group (padded), H hidden size, R ranks.

A part of a group (one micro-batch, one rank) is described by its number of tokens, their mean and
their scatter `sum (x - mean)(x - mean)^T`. Two parts are joined exactly by the pairwise update of
Chan, Golub and LeVeque (1983): the scatters add, plus a rank-one term of the two means. This holds
the same as (n, sum x, sum x x^T), but every part is centred by its own mean, so nothing cancels
and the ranks need no common shift.

Scatters are float64. Measured at N = 1024, H = 576 on a decaying spectrum with outlier dimensions,
a float32 Gram matrix moves single token weights by 5e-5, more than the 1e-5 within which all
layouts have to agree; float64 costs twice the time on a CPU and none on data-centre GPUs.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from megatron_resrl.subspace.shard_group import TokenShardGroup

# Width of the column panels in which the upper triangle of a scatter is made and sent: about half
# the work and half the bytes of the full matrix, and a bounded receive buffer.
PANEL = 256


@dataclass
class Statistics:
    """Count, mean and scatter of the tokens added so far, per group."""

    count_G: Tensor
    """[G] float64 number of tokens."""
    mean_GH: Tensor
    """[G, H] float64 mean; zeros while there are no tokens."""
    scatter_GHH: Tensor
    """[G, H, H] float64 sum of (x - mean)(x - mean)^T; only the upper triangle is valid."""

    @classmethod
    def empty(cls, groups: int, hidden_size: int, device: torch.device | str = "cpu") -> Statistics:
        """Statistics of no tokens."""
        mean_GH = torch.zeros(groups, hidden_size, dtype=torch.float64, device=device)
        scatter_GHH = mean_GH.new_zeros(groups, hidden_size, hidden_size)
        return cls(mean_GH.new_zeros(groups), mean_GH, scatter_GHH)

    @property
    def nbytes(self) -> int:
        """Memory of the tensors."""
        return self.count_G.nbytes + self.mean_GH.nbytes + self.scatter_GHH.nbytes

    def add(self, x_GWH: Tensor, valid_GW: Tensor) -> None:
        """Adds tokens, in place.

        Args:
            x_GWH: [G, W, H] layer-normed tokens.
            valid_GW: [G, W] bool: places that hold a token; other places are ignored.
        """
        if not valid_GW.shape[1]:
            return
        valid_GW1 = valid_GW.unsqueeze(2)
        x_GWH = x_GWH.double().masked_fill(~valid_GW1, 0.0)
        count_G = valid_GW.sum(1).double()
        total_G = self.count_G + count_G
        mean_GH = x_GWH.sum(1) / count_G.clamp_min(1).unsqueeze(1)
        step_GH = (mean_GH - self.mean_GH) * (count_G > 0).unsqueeze(1)
        x_GWH = (x_GWH - mean_GH.unsqueeze(1)).masked_fill_(~valid_GW1, 0.0)
        # The rank-one term of the two means, as one more row of the same product.
        weight_G = (self.count_G * count_G / total_G.clamp_min(1)).sqrt()
        join_G1H = (weight_G.unsqueeze(1) * step_GH).unsqueeze(1)
        self._add_outer(torch.cat((x_GWH, join_G1H), 1))
        self.mean_GH = self.mean_GH + step_GH * (count_G / total_G.clamp_min(1)).unsqueeze(1)
        self.count_G = total_G

    def _add_outer(self, rows_GWH: Tensor) -> None:
        for start in range(0, rows_GWH.shape[2], PANEL):
            panel = self.scatter_GHH[:, start : start + PANEL, start:]
            panel += rows_GWH[:, :, start : start + PANEL].mT @ rows_GWH[:, :, start:]

    def symmetric_scatter(self) -> Tensor:
        """[G, H, H] float64 scatter with both triangles filled."""
        upper_GHH = self.scatter_GHH.triu()
        return upper_GHH + upper_GHH.triu(1).mT


def gather_statistics(local: Statistics, ranks: TokenShardGroup) -> Statistics:
    """Merges all ranks' statistics of the same groups, on every rank.

    Every rank's part is all-gathered and summed in rank order, so a repeated run gives the same
    bits. Hidden states never leave their rank.

    Args:
        local: Statistics of this rank; counts may be 0.
        ranks: They hold different tokens.

    Returns:
        Statistics of all tokens, the same on all ranks.
    """
    if ranks.size == 1:
        return local
    joined, parts = _joined_means(local, ranks, slice(None))
    for start in range(0, joined.mean_GH.shape[1], PANEL):
        panel = local.scatter_GHH[:, start : start + PANEL, start:].contiguous()
        joined.scatter_GHH[:, start : start + PANEL, start:] = _sum_in_order(
            ranks.all_gather(panel)
        )
    joined._add_outer(parts)
    return joined


def scatter_statistics(local: Statistics, ranks: TokenShardGroup) -> Statistics:
    """Joins all ranks' statistics, each group on its owner only (`TokenShardGroup.groups_of_rank`).

    The reduce-scatter over groups by which ranks share the eigen-problems. Parts are sent to the
    owner and summed there in rank order.

    Args:
        local: This rank's part of all G groups.
        ranks: They hold different tokens.

    Returns:
        Statistics of this rank's own groups, in the order of `TokenShardGroup.groups_of_rank`.
    """
    groups, hidden_size = local.mean_GH.shape
    mine = ranks.groups_of_rank(groups)
    joined, parts = _joined_means(local, ranks, mine)
    for start in range(0, hidden_size, PANEL):
        panel = local.scatter_GHH[:, start : start + PANEL, start:]
        parcels = [
            panel[ranks.groups_of_rank(groups, rank)].flatten() for rank in range(ranks.size)
        ]
        expected = len(range(groups)[mine]) * panel[0].numel()
        received = ranks.all_to_all(torch.cat(parcels), [len(p) for p in parcels],
                                    [expected] * ranks.size)  # fmt: skip
        joined.scatter_GHH[:, start : start + PANEL, start:] = _sum_in_order(
            received.view(ranks.size, *joined.scatter_GHH[:, start : start + PANEL, start:].shape)
        )
    joined._add_outer(parts)
    return joined


def _joined_means(
    local: Statistics, ranks: TokenShardGroup, groups: slice
) -> tuple[Statistics, Tensor]:
    """Counts and means of chosen groups, and [G, R, H] rows that join the ranks' scatters."""
    packed = torch.cat((local.count_G.unsqueeze(1), local.mean_GH), 1)
    gathered = ranks.all_gather(packed)[:, groups]
    count_RG1, mean_RGH = gathered[:, :, :1], gathered[:, :, 1:]
    total_G1 = count_RG1.sum(0)
    mean_GH = _sum_in_order(count_RG1 * mean_RGH) / total_G1.clamp_min(1)
    joined = Statistics.empty(len(mean_GH), mean_GH.shape[1], mean_GH.device)
    joined.count_G, joined.mean_GH = total_G1.squeeze(1), mean_GH
    return joined, (count_RG1.sqrt() * (mean_RGH - mean_GH)).transpose(0, 1)


def _sum_in_order(parts: Tensor) -> Tensor:
    total = parts[0].clone()
    for part in parts[1:]:
        total += part
    return total
