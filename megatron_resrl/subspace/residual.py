"""How much of a token lies outside the positive subspace."""

from __future__ import annotations

import torch
from torch import Tensor

from megatron_resrl.subspace.basis import Basis
from megatron_resrl.subspace.statistics import layer_norm

# Rows scored at a time: few enough for a CPU's cache in float64, and all the memory this takes.
ROWS = 256


def residuals(hidden_NH: Tensor, rows_M: Tensor, basis: Basis) -> Tensor:
    """Residual e(x) = |(I - V V^T)(x - mu)|^2 / H of chosen tokens (arXiv 2605.00380).

    In float64, where |y|^2 - |V^T y|^2 loses nothing that matters; float32 moves single weights by
    up to 5e-5 when most of the variance is captured.

    Args:
        hidden_NH: [N, H] hidden states, before layer norm, of any float dtype.
        rows_M: [M] int64 row numbers of the tokens.
        basis: Mean and directions of the group's positives.

    Returns:
        [M] float64, in the order of `rows_M`.
    """
    parts = [_residual(hidden_NH[rows], basis) for rows in rows_M.split(ROWS) if len(rows)]
    if not parts:
        return hidden_NH.new_zeros(0, dtype=torch.float64)
    return torch.cat(parts)


def _residual(hidden_MH: Tensor, basis: Basis) -> Tensor:
    y_MH = layer_norm(hidden_MH).double() - basis.mean_H
    inside_M = (y_MH @ basis.vectors_HK).square().sum(1)
    return (y_MH.square().sum(1) - inside_M).clamp_min(0) / y_MH.shape[1]
