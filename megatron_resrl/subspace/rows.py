"""Hidden states of groups of different sizes as one padded tensor, layer-normed.

Shapes: G groups, W the most rows of one group, H hidden size, n rows of all groups together.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from megatron_resrl.platform.distributed import on_device

LAYER_NORM_EPS = 1e-5
# Rows that are converted to a wider type at a time: few enough for a CPU's cache; bounds memory.
ROWS = 512


def layer_norm(hidden: Tensor) -> Tensor:
    """Parameter-free layer norm over the hidden size, eps 1e-5 (arXiv 2605.00380).

    Args:
        hidden: [..., H] hidden states of any float dtype.

    Returns:
        [..., H] float32, or float64 for float64 input.
    """
    wide = hidden if hidden.dtype == torch.float64 else hidden.float()
    return F.layer_norm(wide, wide.shape[-1:], eps=LAYER_NORM_EPS)


def normalised_dtype(hidden: Tensor) -> torch.dtype:
    """The dtype that `layer_norm` returns."""
    return torch.float64 if hidden.dtype == torch.float64 else torch.float32


@dataclass(frozen=True)
class Padding:
    """Places of n rows in a [G, W] matrix with one line per group."""

    place_n: Tensor
    """[n] int64: index of every row in the flattened matrix."""
    valid_GW: Tensor
    """[G, W] bool: whether a place holds a row."""

    @classmethod
    def of(cls, group_n: Tensor, groups: int, device: torch.device | str) -> Padding:
        """Places rows one after another in the line of their group.

        Args:
            group_n: [n] int64 on the CPU, each in [0, groups).
            groups: G.
            device: Of the result. The computation is on the CPU, so that it waits for no device.
        """
        order = group_n.argsort(stable=True)
        counts = torch.bincount(group_n, minlength=groups)
        width = int(counts.max()) if len(group_n) else 0
        place_n = torch.empty_like(group_n)
        first = counts.cumsum(0) - counts
        lines = group_n[order]
        place_n[order] = lines * width + torch.arange(len(group_n)) - first[lines]
        valid_GW = torch.arange(width) < counts.unsqueeze(1)
        return cls(on_device(place_n, device), on_device(valid_GW, device))

    def pad(self, rows_n: Tensor) -> Tensor:
        """[n, ...] -> [G, W, ...], zeros where there is no row."""
        padded = rows_n.new_zeros((self.valid_GW.numel(), *rows_n.shape[1:]))
        return padded.index_copy_(0, self.place_n, rows_n).view(
            *self.valid_GW.shape, *rows_n.shape[1:]
        )

    def take(self, values_GW: Tensor) -> Tensor:
        """[G, W] -> [n], in the order of the rows."""
        return values_GW.flatten()[self.place_n]
