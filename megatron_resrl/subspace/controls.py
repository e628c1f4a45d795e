"""Weights that say nothing of a token, with the method's share of the loss: for fair comparisons.

What such a comparison has to hold fixed is how hard wrong answers are punished altogether: the
negative mass of a group, the sum over its wrong tokens of share x weight, where a token's share of
the loss is |A_i| c_i, the advantage of its response and what the aggregation makes one of its
tokens count. The mean over tokens is another number as soon as long answers, whose tokens count
less, get other weights than short ones.

Shapes: G groups, W the most negative tokens of a group (padded; padding has share 0).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def constant_weights(weights_GW: Tensor, share_GW: Tensor) -> Tensor:
    """One weight for all tokens of a group: the mean, each token counting by its share.

    Args:
        weights_GW: [G, W] float64: the method's.
        share_GW: [G, W] float64 on the same device, at least 0, not all 0 in any line.

    Returns:
        [G, W] float64.
    """
    mean_G = (weights_GW * share_GW).sum(1) / share_GW.sum(1)
    return mean_G.unsqueeze(1).expand_as(weights_GW)


def random_weights(
    weights_GW: Tensor, share_GW: Tensor, count_G: Tensor, floor: float, keys: Sequence[int]
) -> Tensor:
    """Weights of the group dealt to its tokens, whatever the token.

    A weight is dealt as often as the loss sees it, in proportion to the share of its token, so that
    the dealt weights are distributed as the method's are in the loss; where all shares are alike,
    they are the method's in another order. What a group then misses of the method's mass, or has
    too much, is made up for exactly: all its weights go the same part of their way to 1, or to the
    floor.

    Args:
        weights_GW: [G, W] float64 in [floor, 1]: the method's.
        share_GW: [G, W] float64 on the CPU, at least 0, not all 0 in any line.
        count_G: [G] int64 on the CPU: how many places of each line are tokens.
        floor: The smallest weight.
        keys: [G] of the draws.

    Returns:
        [G, W] float64 in [floor, 1].
    """
    places_GW = _draws(share_GW, count_G, keys).to(weights_GW.device)
    share_GW = share_GW.to(weights_GW.device)
    dealt_GW = weights_GW.gather(1, places_GW)
    full_G = share_GW.sum(1)
    wanted_G, found_G = ((share_GW * each_GW).sum(1) for each_GW in (weights_GW, dealt_GW))
    # Where one of the two is above 0, its denominator is at least as large; where not, it counts
    # nothing.
    up_G = (wanted_G - found_G).clamp_min(0) / (full_G - found_G).clamp_min(1e-300)
    down_G = (found_G - wanted_G).clamp_min(0) / (found_G - floor * full_G).clamp_min(1e-300)
    raised_GW = dealt_GW + up_G.unsqueeze(1) * (1 - dealt_GW)
    return raised_GW - down_G.unsqueeze(1) * (raised_GW - floor)


def _draws(share_GW: Tensor, count_G: Tensor, keys: Sequence[int]) -> Tensor:
    """[G, W] int64 places of each line, by their shares; keyed, on the CPU.

    Of n equal pieces of the line of shares each token gets one and draws inside of it.
    """
    cumulative_GW = share_GW.cumsum(1)
    uniform_GW = torch.zeros_like(cumulative_GW)
    for line, count, key in zip(uniform_GW, count_G.tolist(), keys, strict=True):
        # Another stream than the sample of positives, which has the same key.
        generator = torch.Generator().manual_seed(key ^ 0x5DEECE66D)
        piece = torch.randperm(count, generator=generator)
        inside = torch.rand(count, dtype=torch.float64, generator=generator)
        line[:count] = (piece + inside) / count
    places_GW = torch.searchsorted(cumulative_GW, uniform_GW * cumulative_GW[:, -1:], right=True)
    # Rounding may lead beyond the last token with a share.
    last_G1 = (share_GW > 0).long().mul(torch.arange(1, share_GW.shape[1] + 1)).amax(1, True) - 1
    return torch.minimum(places_GW, last_G1)
