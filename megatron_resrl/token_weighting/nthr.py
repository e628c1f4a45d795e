"""NTHR (arXiv 2505.18830): incorrect tokens whose penalty would lower correct responses count less.

    s_t = sum over the tokens k of correct responses of <delta_k, delta_t> <h_k, h_t>
    tau = beta min over correct responses i of (mean over its tokens of s_t from the others)
    w_t = eta where s_t > tau, else 1; correct responses: 1

h is the state that predicts a token, after the final norm, and delta = e_y - p its prediction
error, restricted to the tokens of the group's responses. p is at the sampling temperature, as in
the loss. Where a group has one correct response, tau is from that response itself: the paper does
not say. Rounding decides of tokens next to tau.

Shapes: N generated tokens of a response, H hidden size.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from megatron_resrl.token_weighting.hidden_reward_pass import (
    HiddenRewardPass,
    HiddenRewardWeighting,
)
from megatron_resrl.token_weighting.whole_groups import SidesReport


class NTHRPass(HiddenRewardPass):
    """Weights of a group with the options `NTHROptions`."""

    def _weights_of(self, correct: Sequence[int], incorrect: Sequence[int]) -> dict[int, Tensor]:
        """See `WholeGroupPass._weights_of`."""
        rewards, least = self._hidden_rewards(correct, incorrect, of_means=False)
        threshold, eta = self._options.beta * least, self._options.eta
        weights = {row: torch.ones_like(rewards[row]).float() for row in correct}
        weights |= {
            row: torch.where(rewards[row] > threshold, eta, 1.0).float() for row in incorrect
        }
        return weights


class NTHRWeighting(HiddenRewardWeighting):
    """Weights of incorrect tokens; all are 1 in a group that has only one side."""

    of_group = NTHRPass

    def summarise(self, reports: Sequence[SidesReport], *, detailed: bool) -> dict[str, float]:
        """`nthr/..`: how many groups are compared, and the mean weight of incorrect tokens."""
        if not reports:
            return {}
        compared = [each.incorrect for each in reports if each.compared]
        found = {"nthr/compared_fraction": len(compared) / len(reports)}
        if compared:
            found["nthr/mean_weight"] = sum(compared) / len(compared)
        return found
