"""Controls: weights that do not depend on the token, with the negative mass of the method.

A fair comparison keeps the total punishment of incorrect responses: the negative mass of a group,
the sum of share x weight over its incorrect tokens. The share of a token in the loss is |A_i| c_i:
the advantage of its response times the coefficient that the aggregation gives each token of the
response. The mean weight over tokens is a different number: tokens of long responses have smaller
shares, and long responses may get other weights than short ones.

Shapes: G groups, W the most negative tokens of a group (padded; padding has share 0).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def constant_weights(weights_GW: Tensor, share_GW: Tensor) -> Tensor:
    """One weight for all tokens of a group: the mean of the weights, weighted by the shares.

    Args:
        weights_GW: [G, W] float64 weights of the method.
        share_GW: [G, W] float64 on the same device, at least 0, not all 0 in any line.

    Returns:
        [G, W] float64.
    """
    mean_G = (weights_GW * share_GW).sum(1) / share_GW.sum(1)
    return mean_G.unsqueeze(1).expand_as(weights_GW)


def random_weights(
    weights_GW: Tensor, share_GW: Tensor, count_G: Tensor, floor: float, keys: Sequence[int]
) -> Tensor:
    """Assigns the weights of a group to its tokens at random.

    Each weight is drawn in proportion to the share of its token, so that the drawn weights have the
    distribution of the method's weights in the loss; if all shares are equal, they are a
    permutation of the method's weights. Then the negative mass of the group is corrected exactly:
    all its weights move by the same fraction of their distance towards 1, or towards the floor.

    Args:
        weights_GW: [G, W] float64 in [floor, 1]: weights of the method.
        share_GW: [G, W] float64 on the CPU, at least 0, not all 0 in any line.
        count_G: [G] int64 on the CPU: number of tokens in each line.
        floor: The smallest weight.
        keys: [G] keys of the random draws.

    Returns:
        [G, W] float64 in [floor, 1].
    """
    places_GW = _draws(share_GW, count_G, keys).to(weights_GW.device)
    share_GW = share_GW.to(weights_GW.device)
    dealt_GW = weights_GW.gather(1, places_GW)
    full_G = share_GW.sum(1)
    wanted_G, found_G = ((share_GW * each_GW).sum(1) for each_GW in (weights_GW, dealt_GW))
    # If a numerator is above 0, its denominator is at least as large; otherwise the fraction is 0.
    up_G = (wanted_G - found_G).clamp_min(0) / (full_G - found_G).clamp_min(1e-300)
    down_G = (found_G - wanted_G).clamp_min(0) / (found_G - floor * full_G).clamp_min(1e-300)
    raised_GW = dealt_GW + up_G.unsqueeze(1) * (1 - dealt_GW)
    return raised_GW - down_G.unsqueeze(1) * (raised_GW - floor)


def _draws(share_GW: Tensor, count_G: Tensor, keys: Sequence[int]) -> Tensor:
    """[G, W] int64 indices into each line, drawn in proportion to the shares; on the CPU.

    Stratified: the n tokens draw from n equal pieces of the cumulative shares, one piece each.
    """
    cumulative_GW = share_GW.cumsum(1)
    uniform_GW = torch.zeros_like(cumulative_GW)
    for line, count, key in zip(uniform_GW, count_G.tolist(), keys, strict=True):
        # Not the random stream of the sample of positives, which has the same key.
        generator = torch.Generator().manual_seed(key ^ 0x5DEECE66D)
        piece = torch.randperm(count, generator=generator)
        inside = torch.rand(count, dtype=torch.float64, generator=generator)
        line[:count] = (piece + inside) / count
    places_GW = torch.searchsorted(cumulative_GW, uniform_GW * cumulative_GW[:, -1:], right=True)
    # Rounding may lead beyond the last token with a share.
    last_G1 = (share_GW > 0).long().mul(torch.arange(1, share_GW.shape[1] + 1)).amax(1, True) - 1
    return torch.minimum(places_GW, last_G1)
