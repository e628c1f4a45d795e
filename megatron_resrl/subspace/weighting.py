"""Residuals of a window's negative tokens -> weights, for all its groups at once.

Shapes: G groups, W the most negative tokens of a group (padded).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from megatron_resrl.subspace.plan import SubspaceSettings

MIN_QUANTILE_SPREAD = 1e-5


@dataclass(frozen=True)
class Weighted:
    """Weights of a window and what they were made of."""

    weights_GW: Tensor
    """[G, W] float64; places without a token are unspecified."""
    mean_weight_G: Tensor
    """[G] float64."""
    q_low_G: Tensor
    """[G] float64 lower residual quantile."""
    q_high_G: Tensor
    """[G] float64 upper residual quantile."""


def weigh(
    residual_GW: Tensor, count_G: Tensor, settings: SubspaceSettings, keys: Sequence[int]
) -> Weighted:
    """Maps residual quantiles to [floor, 1] (arXiv 2605.00380), or makes a control of it.

    Args:
        residual_GW: [G, W] float64; the first `count_G` of each line are tokens.
        count_G: [G] int64 on the CPU, at least 1.
        settings: Quantiles, floor, and which weights.
        keys: [G] keys of the `random` control.
    """
    device = residual_GW.device
    valid_GW = (torch.arange(residual_GW.shape[1]) < count_G.unsqueeze(1)).to(device)
    ordered_GW = residual_GW.masked_fill(~valid_GW, float("inf")).sort(1).values
    low_G, high_G = (quantiles(ordered_GW, count_G, q) for q in settings.quantiles)
    spread_G1 = (high_G - low_G).unsqueeze(1)
    share_GW = (residual_GW - low_G.unsqueeze(1)) / spread_G1.clamp_min(MIN_QUANTILE_SPREAD)
    share_GW = torch.where(spread_G1 < MIN_QUANTILE_SPREAD, 0.5, share_GW.clamp(0, 1))
    weights_GW = settings.floor + (1 - settings.floor) * share_GW
    total_G = weights_GW.masked_fill(~valid_GW, 0.0).sum(1)
    mean_G = total_G / count_G.to(device)
    if settings.weights == "constant":
        weights_GW = mean_G.unsqueeze(1).expand_as(weights_GW)
    elif settings.weights == "random":
        shuffled_GW = _shuffles(count_G, residual_GW.shape[1], keys).to(device)
        weights_GW = weights_GW.gather(1, shuffled_GW)
    return Weighted(weights_GW, mean_G, low_G, high_G)


def quantiles(ordered_GW: Tensor, count_G: Tensor, q: float) -> Tensor:
    """[G] quantile of the first `count_G` values of ascending lines, linear interpolation."""
    place_G = q * (count_G.double() - 1)
    below_G = place_G.floor().long()
    above_G = torch.minimum(below_G + 1, count_G - 1)
    ends_G2 = ordered_GW.gather(1, torch.stack((below_G, above_G), 1).to(ordered_GW.device))
    part_G = (place_G - below_G).to(ordered_GW.device)
    return torch.lerp(ends_G2[:, 0], ends_G2[:, 1], part_G)


def _shuffles(count_G: Tensor, width: int, keys: Sequence[int]) -> Tensor:
    """[G, W] a permutation of the first `count_G` places of each line, keyed."""
    lines = torch.arange(width).repeat(len(count_G), 1)
    for line, count, key in zip(lines, count_G.tolist(), keys, strict=True):
        # Another stream than the sample of positives, which has the same key.
        generator = torch.Generator().manual_seed(key ^ 0x5DEECE66D)
        line[:count] = torch.randperm(count, generator=generator)
    return lines
