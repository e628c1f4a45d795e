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

from megatron_resrl.policy.vocabulary import VocabularyShard
from megatron_resrl.rollout.batch import TrainingBatch
from megatron_resrl.token_weighting.context import WeightingContext
from megatron_resrl.token_weighting.hidden_rewards import HiddenRewards
from megatron_resrl.token_weighting.options import NTHROptions
from megatron_resrl.token_weighting.stages import ReceivingPass
from megatron_resrl.token_weighting.whole_groups import (
    LAYER,
    SidesReport,
    WholeGroupPass,
    rows_of_groups,
)


class NTHRWeighting:
    """Weights of incorrect tokens; all are 1 in a group that has only one side."""

    def __init__(self, context: WeightingContext) -> None:
        """
        Args:
            context: Of the run.
        """
        self.context = context

    def begin(self, batch: TrainingBatch, step: int) -> NTHRPass | ReceivingPass:
        """See `TokenWeighting.begin`."""
        groups, policy = rows_of_groups(batch), self.context.policy
        if not policy.holds_tap(LAYER):
            order = [row for rows in groups for row in rows]
            return ReceivingPass(policy, LAYER, order, batch.loss_mask.shape)
        return NTHRPass(self.context, batch, groups)

    def summarise(self, reports: Sequence[SidesReport], *, detailed: bool) -> dict[str, float]:
        """`nthr/..`: how many groups are compared, and the mean weight of incorrect tokens."""
        if not reports:
            return {}
        compared = [each.incorrect for each in reports if each.compared]
        found = {"nthr/compared_fraction": len(compared) / len(reports)}
        if compared:
            found["nthr/mean_weight"] = sum(compared) / len(compared)
        return found


class NTHRPass(WholeGroupPass):
    """The pass on the stage with the layer, see `WeightingPass`."""

    def __init__(
        self, context: WeightingContext, batch: TrainingBatch, groups: Sequence[Sequence[int]]
    ) -> None:
        """
        Args:
            context: Of the run.
            batch: See `WholeGroupPass`.
            groups: See `WholeGroupPass`.
        """
        super().__init__(context.policy, batch, groups)
        self._options: NTHROptions = context.options
        self._shard = VocabularyShard(
            context.policy.modules[-1].output_weight(),
            context.policy.hf_config.vocab_size,
            context.temperature,
            context.policy.tensor_parallel_group,
        )

    def _weights_of(self, correct: Sequence[int], incorrect: Sequence[int]) -> dict[int, Tensor]:
        """See `WholeGroupPass._weights_of`."""
        tokens = {row: self._tokens(row) for row in (*correct, *incorrect)}
        rewards = HiddenRewards(self._shard, torch.cat(list(tokens.values())).unique())

        def gradient_of(row: int) -> Tensor:
            return rewards.gradient(self._states[row], tokens[row])

        def of_tokens(row: int, gradient: Tensor) -> Tensor:
            return rewards.of_tokens(self._states[row], tokens[row], gradient)

        gradient = gradient_of(correct[0])
        for row in correct[1:]:
            gradient += gradient_of(row)
        alone = len(correct) == 1
        # Made anew, because all of them at once would take much memory.
        means = [
            of_tokens(row, gradient if alone else gradient - gradient_of(row)).mean()
            for row in correct
        ]
        threshold = self._options.beta * torch.stack(means).amin()
        weights = {row: torch.ones(len(tokens[row]), device=gradient.device) for row in correct}
        for row in incorrect:
            selected = of_tokens(row, gradient) > threshold
            weights[row] = torch.where(selected, self._options.eta, 1.0).float()
        return weights

    def _tokens(self, row: int) -> Tensor:
        """[N] int64 on the CPU: the generated tokens of a response."""
        place = self._batch.prompt_lengths[row] + self._batch.loss_mask[row].nonzero()[:, 0]
        return self._batch.token_ids[row, place]
