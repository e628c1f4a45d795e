"""What NTHR and THR share: how much the gradient of each token favours correct responses.

Shapes: N generated tokens of a response, H hidden size.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from megatron_resrl.policy.vocabulary import VocabularyShard
from megatron_resrl.rollout.batch import TrainingBatch
from megatron_resrl.token_weighting.context import WeightingContext
from megatron_resrl.token_weighting.hidden_rewards import HiddenRewards
from megatron_resrl.token_weighting.stages import ReceivingPass
from megatron_resrl.token_weighting.whole_groups import LAYER, WholeGroupPass, rows_of_groups


class HiddenRewardPass(WholeGroupPass):
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
        self._options: Any = context.options
        self._shard = VocabularyShard(
            context.policy.modules[-1].output_weight(),
            context.policy.hf_config.vocab_size,
            context.temperature,
            context.policy.tensor_parallel_group,
        )

    def _hidden_rewards(
        self, correct: Sequence[int], incorrect: Sequence[int], *, of_means: bool
    ) -> tuple[dict[int, Tensor], Tensor]:
        """What each token does to the correct responses, and what a correct one does at least.

        Collective over the ranks that share the group.

        Args:
            correct: Rows of correct responses.
            incorrect: Rows of incorrect ones.
            of_means: A correct response counts with the mean over its tokens, not with their sum.

        Returns:
            Row -> [N] float64, the inner products with all tokens of correct responses; and [], the
            least mean over a correct response's tokens of those with the *other* correct responses,
            or with itself where it is the only one.
        """
        tokens = {row: self._tokens(row) for row in (*correct, *incorrect)}
        rewards = HiddenRewards(self._shard, torch.cat(list(tokens.values())).unique())

        def gradient_of(row: int) -> Tensor:
            share = 1 / len(tokens[row]) if of_means else 1.0
            return rewards.gradient(self._states[row], tokens[row]) * share

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
        return {row: of_tokens(row, gradient) for row in tokens}, torch.stack(means).amin()

    def _tokens(self, row: int) -> Tensor:
        """[N] int64 on the CPU: the generated tokens of a response."""
        place = self._batch.prompt_lengths[row] + self._batch.loss_mask[row].nonzero()[:, 0]
        return self._batch.token_ids[row, place]


class HiddenRewardWeighting:
    """A weighting whose pass is a `HiddenRewardPass`."""

    of_group: ClassVar[type[HiddenRewardPass]]
    """Makes the weights of a group."""

    def __init__(self, context: WeightingContext) -> None:
        """
        Args:
            context: Of the run.
        """
        self.context = context

    def begin(self, batch: TrainingBatch, step: int) -> HiddenRewardPass | ReceivingPass:
        """See `TokenWeighting.begin`."""
        groups, policy = rows_of_groups(batch), self.context.policy
        if not policy.holds_tap(LAYER):
            order = [row for rows in groups for row in rows]
            return ReceivingPass(policy, LAYER, order, batch.loss_mask.shape)
        return self.of_group(self.context, batch, groups)
