"""Residuals of negative tokens -> weights, for all groups of a window at once.

Shapes: G groups, W the most negative tokens of a group (padded).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from megatron_resrl.platform.distributed import on_device
from megatron_resrl.subspace.controls import constant_weights, random_weights
from megatron_resrl.subspace.plan import SubspaceSettings

MIN_QUANTILE_SPREAD = 1e-5


@dataclass(frozen=True)
class GroupWeights:
    """Weights of a window, with the quantiles that they were made from."""

    weights_GW: Tensor
    """[G, W] float64; places without a token are unspecified."""
    mean_weight_G: Tensor
    """[G] float64 mean weight over the tokens."""
    q_low_G: Tensor
    """[G] float64 lower residual quantile."""
    q_high_G: Tensor
    """[G] float64 upper residual quantile."""


def group_weights(
    residual_GW: Tensor,
    count_G: Tensor,
    settings: SubspaceSettings,
    keys: Sequence[int],
    share_GW: Tensor,
) -> GroupWeights:
    """Maps residual quantiles to [floor, 1] (arXiv 2605.00380), or makes a control of it.

    Args:
        residual_GW: [G, W] float64; the first `count_G` of each line are tokens.
        count_G: [G] int64 on the CPU, at least 1.
        settings: Quantiles, floor, and which weights.
        keys: [G] keys of the `random` control.
        share_GW: [G, W] float64 on the CPU: what each token counts in the loss, up to a factor of
            its group; controls have the method's sum of share x weight.
    """
    device = residual_GW.device
    # Quantiles of each group's residuals; padding sorts behind all tokens.
    valid_GW = on_device(torch.arange(residual_GW.shape[1]) < count_G.unsqueeze(1), device)
    ordered_GW = residual_GW.masked_fill(~valid_GW, float("inf")).sort(1).values
    low_G, high_G = (quantiles(ordered_GW, count_G, q) for q in settings.quantiles)
    # Low quantile -> floor, high quantile -> 1, linear between; no spread -> the middle.
    spread_G1 = (high_G - low_G).unsqueeze(1)
    scaled_GW = (residual_GW - low_G.unsqueeze(1)) / spread_G1.clamp_min(MIN_QUANTILE_SPREAD)
    scaled_GW = torch.where(spread_G1 < MIN_QUANTILE_SPREAD, 0.5, scaled_GW.clamp(0, 1))
    weights_GW = settings.floor + (1 - settings.floor) * scaled_GW
    if settings.weights == "inverted":
        # w' = 1 + xi - w: the floor on the largest residuals, 1 on the smallest.
        weights_GW = 1 + settings.floor - weights_GW
    elif settings.weights != "residual":
        # Controls with the same sum of share x weight.
        weights_GW = weights_GW.masked_fill(~valid_GW, settings.floor)
        share_GW = _usable_shares(share_GW, valid_GW.cpu())
        if settings.weights == "constant":
            weights_GW = constant_weights(weights_GW, share_GW.to(device))
        else:
            weights_GW = random_weights(weights_GW, share_GW, count_G, settings.floor, keys)
    total_G = weights_GW.masked_fill(~valid_GW, 0.0).sum(1)
    return GroupWeights(weights_GW, total_G / on_device(count_G, device), low_G, high_G)


def quantiles(ordered_GW: Tensor, count_G: Tensor, q: float) -> Tensor:
    """[G] quantile of the first `count_G` values of ascending lines, linear interpolation."""
    place_G = q * (count_G.double() - 1)
    below_G = place_G.floor().long()
    above_G = torch.minimum(below_G + 1, count_G - 1)
    device = ordered_GW.device
    ends_G2 = ordered_GW.gather(1, on_device(torch.stack((below_G, above_G), 1), device))
    part_G = on_device(place_G - below_G, device)
    return torch.lerp(ends_G2[:, 0], ends_G2[:, 1], part_G)


def _usable_shares(share_GW: Tensor, valid_GW: Tensor) -> Tensor:
    """Shares, 0 on padding; 1 for every token of a group without any share in the loss."""
    share_GW = share_GW.masked_fill(~valid_GW, 0.0)
    unseen_G1 = share_GW.sum(1, keepdim=True) == 0
    return torch.where(unseen_G1, valid_GW.double(), share_GW)
