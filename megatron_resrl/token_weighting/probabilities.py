"""Weights by how likely the engine found each token when it generated it.

The sources take the probabilities under the policy before the step. Those of the engine are the
same but for numerics and a truncated distribution, and are known before any pass.

Shapes: B responses, T tokens of the longest response.
"""

from __future__ import annotations

import torch
from torch import Tensor

from megatron_resrl.rollout.batch import TrainingBatch
from megatron_resrl.token_weighting.context import WeightingContext
from megatron_resrl.token_weighting.fixed import FixedWeighting
from megatron_resrl.token_weighting.options import A3POOptions, FilterOptions, ProbabilityOptions


class NegativeFilter(FixedWeighting):
    """Of an incorrect response only the least likely tokens are punished (arXiv 2606.17250)."""

    def __init__(self, context: WeightingContext) -> None:
        super().__init__(context)
        self.options: FilterOptions = context.options

    def weights(self, batch: TrainingBatch) -> Tensor:
        """1 for tokens of correct responses and for those that are kept, 0 for the others.

        Tokens of weight 0 stay in the denominators of `algorithm.aggregation`.
        """
        kept_BT = extreme_tokens(batch.rollout_log_probs, batch.loss_mask, self.options.keep)
        return (kept_BT | batch.positive[:, None]).float()


class A3PO(FixedWeighting):
    """Unlikely tokens of correct, likely ones of incorrect responses count more (2512.21625).

    The formula is that of the released code. The paper also lets the scales decay to 1 in the
    course of training; its schedule is not in the code, and is left out.
    """

    def __init__(self, context: WeightingContext) -> None:
        super().__init__(context)
        self.options: A3POOptions = context.options

    def weights(self, batch: TrainingBatch) -> Tensor:
        """The scale of its side for the chosen share of each response, 1 for the others."""
        log_probs, options = batch.rollout_log_probs, self.options
        unlikely_BT = extreme_tokens(log_probs, batch.loss_mask, options.share)
        likely_BT = extreme_tokens(-log_probs, batch.loss_mask, options.share)
        positive_B1 = batch.positive[:, None]
        weights_BT = torch.ones(batch.loss_mask.shape)
        weights_BT[unlikely_BT & positive_B1] = options.positive_scale
        weights_BT[likely_BT & ~positive_B1] = options.negative_scale
        return weights_BT


class Probability(FixedWeighting):
    """w = alpha p + 1 - alpha: unlikely tokens, whose gradients are large, count less
    (arXiv 2505.12929, advantage reweighting)."""

    def __init__(self, context: WeightingContext) -> None:
        super().__init__(context)
        self.options: ProbabilityOptions = context.options

    def weights(self, batch: TrainingBatch) -> Tensor:
        """By the probability of each token, of correct and incorrect responses alike."""
        alpha = self.options.alpha
        return alpha * batch.rollout_log_probs.exp() + 1 - alpha


def extreme_tokens(values_BT: Tensor, mask_BT: Tensor, share: float) -> Tensor:
    """The tokens with the smallest values, a share of each response's, rounded down; one at least.

    Args:
        values_BT: [B, T] float; of equal values the earlier token comes first.
        mask_BT: [B, T] bool: tokens that take part.
        share: Above 0, at most 1.

    Returns:
        [B, T] bool.
    """
    order_BT = values_BT.masked_fill(~mask_BT, torch.inf).argsort(dim=1, stable=True)
    # Rank of each token among its response's: the inverse of the order.
    rank_BT = order_BT.argsort(dim=1, stable=True)
    taken_B = (mask_BT.sum(1).double() * share).long().clamp(min=1)
    return mask_BT & (rank_BT < taken_B[:, None])
