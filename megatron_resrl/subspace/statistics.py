"""Layer norm of hidden states, and the additive statistics of a group's positive tokens.

Shapes: N tokens, H hidden size.

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
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from megatron_resrl.subspace.gather import all_gather, group_size

LAYER_NORM_EPS = 1e-5

# Width of the column panels in which the upper triangle of a scatter is made and sent: about half
# the work and half the bytes of the full matrix, and a bounded receive buffer.
PANEL = 256
# Rows turned into float64 at a time.
ROWS = 512


def layer_norm(hidden_NH: Tensor) -> Tensor:
    """Parameter-free layer norm over the hidden size, eps 1e-5 (arXiv 2605.00380).

    Args:
        hidden_NH: [N, H] hidden states of any float dtype.

    Returns:
        [N, H] float32, or float64 for float64 input.
    """
    wide = hidden_NH if hidden_NH.dtype == torch.float64 else hidden_NH.float()
    return F.layer_norm(wide, wide.shape[-1:], eps=LAYER_NORM_EPS)


def normalised_rows(hidden_NH: Tensor, rows_M: Tensor) -> Tensor:
    """Layer norm of chosen rows, made in slices so that only the result is large.

    Args:
        hidden_NH: [N, H] hidden states of any float dtype.
        rows_M: [M] int64 row numbers.

    Returns:
        [M, H] float32, or float64 for float64 input.
    """
    dtype = torch.float64 if hidden_NH.dtype == torch.float64 else torch.float32
    x_MH = hidden_NH.new_empty((len(rows_M), hidden_NH.shape[1]), dtype=dtype)
    for start in range(0, len(rows_M), ROWS):
        x_MH[start : start + ROWS] = layer_norm(hidden_NH[rows_M[start : start + ROWS]])
    return x_MH


@dataclass
class Statistics:
    """Count, mean and scatter of the tokens seen so far."""

    count: int
    """Number of tokens."""
    mean_H: Tensor
    """[H] float64 mean; zeros while there are no tokens."""
    scatter_HH: Tensor
    """[H, H] float64 sum of (x - mean)(x - mean)^T; only the upper triangle is meant."""

    @classmethod
    def empty(cls, hidden_size: int, device: torch.device | str = "cpu") -> Statistics:
        """Statistics of no tokens."""
        mean_H = torch.zeros(hidden_size, dtype=torch.float64, device=device)
        return cls(0, mean_H, mean_H.new_zeros(hidden_size, hidden_size))

    def add(self, x_NH: Tensor) -> None:
        """Joins further tokens, in place.

        Args:
            x_NH: [N, H] layer-normed tokens.
        """
        for part_NH in x_NH.split(ROWS):
            if len(part_NH):
                self._add_part(part_NH.double())

    def _add_part(self, x_NH: Tensor) -> None:
        total = self.count + len(x_NH)
        mean_H = x_NH.mean(0)
        step_H = mean_H - self.mean_H
        rows_NH = x_NH - mean_H
        if self.count:
            # The rank-one term of the two means, as one more row of the same product.
            weight = (self.count * len(x_NH) / total) ** 0.5
            rows_NH = torch.cat((rows_NH, weight * step_H.unsqueeze(0)))
        self._add_outer(rows_NH)
        self.mean_H = self.mean_H + step_H * (len(x_NH) / total)
        self.count = total

    def _add_outer(self, rows_NH: Tensor) -> None:
        for start in range(0, rows_NH.shape[1], PANEL):
            panel = self.scatter_HH[start : start + PANEL, start:]
            panel.addmm_(rows_NH[:, start : start + PANEL].T, rows_NH[:, start:])

    def symmetric_scatter(self) -> Tensor:
        """[H, H] float64 scatter with both triangles filled."""
        upper_HH = self.scatter_HH.triu()
        return upper_HH + upper_HH.triu(1).T


def gather_statistics(local: Statistics, process_group: dist.ProcessGroup | None) -> Statistics:
    """Joins the statistics of ranks that hold different tokens of one group.

    Every rank's part is all-gathered and summed in rank order, so a repeated run gives the same
    bits. Hidden states never leave their rank.

    Args:
        local: This rank's part; its count may be 0.
        process_group: Ranks that hold different tokens. Ranks that hold copies of the same tokens
            must not be in it, or these count twice.

    Returns:
        Statistics of all tokens, the same on all ranks.
    """
    if group_size(process_group) == 1:
        return local
    count = local.mean_H.new_tensor([float(local.count)])
    gathered = all_gather(torch.cat((count, local.mean_H)), process_group)
    counts_R, means_RH = gathered[:, :1], gathered[:, 1:]
    total = int(counts_R.sum().item())
    mean_H = _sum_in_order(counts_R * means_RH) / max(total, 1)

    joined = Statistics.empty(len(mean_H), mean_H.device)
    joined.count, joined.mean_H = total, mean_H
    for start in range(0, len(mean_H), PANEL):
        panel = local.scatter_HH[start : start + PANEL, start:].contiguous()
        joined.scatter_HH[start : start + PANEL, start:] = _sum_in_order(
            all_gather(panel, process_group)
        )
    joined._add_outer(counts_R.sqrt() * (means_RH - mean_H))
    return joined


def _sum_in_order(parts: Tensor) -> Tensor:
    total = parts[0].clone()
    for part in parts[1:]:
        total += part
    return total
