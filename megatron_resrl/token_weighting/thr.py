"""THR (arXiv 2510.03669): dominant tokens alone, more or less by the sign of their hidden reward.

    s_ti = 1 / N_i sum over the tokens k of correct response i of <delta_k, delta_t> <h_k, h_t>
    THR_t = sum over i of s_ti, times -1 in incorrect responses
    tau = threshold min over correct responses j of (mean over its t of sum over i != j of s_ti)
    w_t = [|THR_t| > tau] (1 + sign(THR_t) p)

With p above 0 those tokens count more that make the correct responses likelier (exploitation),
below 0 the others (exploration). The paper has tau from NTHR; h, delta, the vocabulary, and tau of
a group with one correct response are as there (`nthr.py`).

Shapes: N generated tokens of a response, H hidden size.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from megatron_resrl.rollout.batch import TrainingBatch
from megatron_resrl.token_weighting.context import WeightingContext
from megatron_resrl.token_weighting.hidden_rewards import HiddenRewards
from megatron_resrl.token_weighting.nthr import NTHRPass
from megatron_resrl.token_weighting.options import THROptions
from megatron_resrl.token_weighting.stages import ReceivingPass
from megatron_resrl.token_weighting.whole_groups import (
    LAYER,
    SidesReport,
    rows_of_groups,
    summary_of_sides,
)


class THRWeighting:
    """Weights of both sides; all are 1 in a group that has only one."""

    def __init__(self, context: WeightingContext) -> None:
        """
        Args:
            context: Of the run.
        """
        self.context = context

    def begin(self, batch: TrainingBatch, step: int) -> THRPass | ReceivingPass:
        """See `TokenWeighting.begin`."""
        groups, policy = rows_of_groups(batch), self.context.policy
        if not policy.holds_tap(LAYER):
            order = [row for rows in groups for row in rows]
            return ReceivingPass(policy, LAYER, order, batch.loss_mask.shape)
        return THRPass(self.context, batch, groups)

    def summarise(self, reports: Sequence[SidesReport], *, detailed: bool) -> dict[str, float]:
        """`thr/..`: how many groups are compared, and the mean weight of each side."""
        return summary_of_sides("thr", reports)


class THRPass(NTHRPass):
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
        super().__init__(context, batch, groups)
        self._thr: THROptions = context.options

    def _weights_of(self, correct: Sequence[int], incorrect: Sequence[int]) -> dict[int, Tensor]:
        """See `WholeGroupPass._weights_of`."""
        tokens = {row: self._tokens(row) for row in (*correct, *incorrect)}
        rewards = HiddenRewards(self._shard, torch.cat(list(tokens.values())).unique())

        def gradient_of(row: int) -> Tensor:
            return rewards.gradient(self._states[row], tokens[row]) / len(tokens[row])

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
        threshold = self._thr.threshold * torch.stack(means).amin()
        signed = {row: of_tokens(row, gradient) for row in correct}
        signed |= {row: -of_tokens(row, gradient) for row in incorrect}
        return {
            row: ((thr_N.abs() > threshold) * (1 + self._thr.p * thr_N.sign())).float()
            for row, thr_N in signed.items()
        }
