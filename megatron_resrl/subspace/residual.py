"""The part of a token's hidden state outside the positive subspace of its group."""

from __future__ import annotations

import torch
from torch import Tensor

from megatron_resrl.platform.distributed import on_device
from megatron_resrl.subspace.basis import Basis
from megatron_resrl.subspace.rows import Padding, layer_norm

# Rows scored at a time: few enough for a CPU's cache in float64; bounds memory.
SCORED_ROWS = 256


def residuals(hidden_nH: Tensor, group_n: Tensor, basis: Basis) -> Tensor:
    """Residual e(x) = |(I - V V^T)(x - mu)|^2 / H (arXiv 2605.00380).

    In float64, where |y|^2 - |V^T y|^2 loses nothing that matters; float32 moves single weights by
    up to 5e-5 when most of the variance is captured.

    Args:
        hidden_nH: [n, H] hidden states, before layer norm, of any float dtype.
        group_n: [n] int64 on the CPU: index of each row's group in `basis`.
        basis: Mean and directions of the groups' positives.

    Returns:
        [n] float64.
    """
    order = group_n.argsort(stable=True)
    if not torch.equal(order, torch.arange(len(order))):
        place = on_device(order, hidden_nH.device)
        sorted_n = residuals(hidden_nH[place], group_n[order], basis)
        return torch.empty_like(sorted_n).index_copy_(0, place, sorted_n)
    parts = [
        _residuals(hidden, group, basis)
        for hidden, group in zip(
            hidden_nH.split(SCORED_ROWS), group_n.split(SCORED_ROWS), strict=True
        )
        if len(group)
    ]
    return torch.cat(parts) if parts else hidden_nH.new_zeros(0, dtype=torch.float64)


def _residuals(hidden_nH: Tensor, group_n: Tensor, basis: Basis) -> Tensor:
    first, last = int(group_n[0]), int(group_n[-1])
    y_nH = layer_norm(hidden_nH).double()
    if first == last:
        return _outside((y_nH - basis.mean_GH[first]).unsqueeze(0), basis.vectors_GHK[first])[0]
    chosen = slice(first, last + 1)
    padding = Padding.of(group_n - first, last + 1 - first, hidden_nH.device)
    y_GWH = padding.pad(y_nH) - basis.mean_GH[chosen].unsqueeze(1)
    return padding.take(_outside(y_GWH, basis.vectors_GHK[chosen]))


def _outside(y_GWH: Tensor, vectors: Tensor) -> Tensor:
    """[G, W] mean square of what the directions [G or none, H, K] do not hold."""
    whole_GW = torch.linalg.vector_norm(y_GWH, dim=2).square()
    inside_GW = torch.linalg.vector_norm(y_GWH @ vectors, dim=2).square()
    return (whole_GW - inside_GW).clamp_min(0) / y_GWH.shape[2]
