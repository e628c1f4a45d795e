"""Base of weightings whose weights depend on each token's own hidden state alone.

Shapes: m generated tokens of a micro-batch on this rank, H hidden size, B responses of this
replica, T tokens of the step's longest response.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from megatron_resrl.platform.distributed import device, on_device
from megatron_resrl.policy.batches import MicroBatch
from megatron_resrl.policy.results import TappedStates
from megatron_resrl.policy.token_budget import MicroBatchLimit
from megatron_resrl.rollout.batch import TrainingBatch
from megatron_resrl.token_weighting.context import WeightingContext
from megatron_resrl.token_weighting.parts import parts_of_batch
from megatron_resrl.token_weighting.protocol import TokenWeights
from megatron_resrl.token_weighting.stages import ReceivingPass, from_tap_stage, loss_elsewhere


class TokenwiseWeighting(ABC):
    """Weights of incorrect tokens, one by one; correct responses keep weight 1.

    A subclass defines `weights`; it may change `layer`, by default `resrl.layer`.
    """

    def __init__(self, context: WeightingContext) -> None:
        """
        Args:
            context: Of the run.
        """
        self.policy = context.policy
        self.layer = context.settings.layer

    @abstractmethod
    def weights(self, hidden: Tensor) -> Tensor:
        """The weights of tokens.

        Args:
            hidden: [m, H] float, the states at `layer` that predict the tokens.

        Returns:
            [m] float, at least 0.
        """

    def begin(self, batch: TrainingBatch, step: int) -> TokenwisePass | ReceivingPass:
        """See `TokenWeighting.begin`."""
        if not self.policy.holds_tap(self.layer):
            return ReceivingPass(self.policy, self.layer, range(len(batch)), batch.loss_mask.shape)
        return TokenwisePass(self, batch, range(len(batch)))

    def obstacle(self) -> str | None:
        """See `loss_elsewhere`."""
        return loss_elsewhere(self.policy, self.layer)

    def scored_first(self, batch: TrainingBatch, limit: MicroBatchLimit) -> set[int]:
        """No group."""
        return set()

    def begin_update(
        self, batch: TrainingBatch, step: int, first: Collection[int], limit: MicroBatchLimit
    ) -> TokenwisePass | ReceivingPass:
        """See `SinglePassWeighting.begin_update`."""
        scored, parts = parts_of_batch(batch, limit, first)
        if not self.policy.holds_tap(self.layer):
            return ReceivingPass(self.policy, self.layer, scored, batch.loss_mask.shape, parts)
        return TokenwisePass(self, batch, scored, parts)

    def summarise(self, reports: Sequence[Any], *, detailed: bool) -> dict[str, float]:
        """No metrics."""
        return {}


class TokenwisePass:
    """The pass on the stage with the layer, see `WeightingPass` and `UpdatePass`."""

    def __init__(
        self,
        weighting: TokenwiseWeighting,
        batch: TrainingBatch,
        order: Sequence[int],
        parts: Sequence[Sequence[int]] = (),
    ) -> None:
        """
        Args:
            weighting: Gives the weights.
            batch: This replica's responses.
            order: Rows that are scored.
            parts: See `UpdatePass.parts`.
        """
        self.layer = weighting.layer
        self.order = order
        self.parts = parts
        self._weighting = weighting
        self._negative_BT = (batch.loss_mask & ~batch.positive[:, None]).to(device())
        self._weights_BT = torch.zeros(batch.loss_mask.shape, device=device())

    @torch.no_grad()
    def observe(self, states: TappedStates, micro_batch: MicroBatch) -> None:
        """Keeps one number per token of this rank's sequences. Collective under SP."""
        weights_n = torch.zeros(micro_batch.targets.shape, device=device())
        chosen = on_device(states.token, weights_n.device)
        weights_n[chosen] = self._weighting.weights(states.hidden).float()
        if self._weighting.policy.config.sequence_parallel:
            # Each tensor-parallel rank has a slice of the states; the rest are zeros.
            dist.all_reduce(weights_n, group=self._weighting.policy.tensor_parallel_group)
        self._weights_BT[micro_batch.sequence_index, micro_batch.response_position] = weights_n

    def weights_of(self, micro_batch: MicroBatch) -> Tensor:
        """See `UpdatePass.weights_of`."""
        token = micro_batch.sequence_index, micro_batch.response_position
        return torch.where(self._negative_BT[token], self._weights_BT[token], 1.0)

    def finish(self) -> TokenWeights:
        """See `WeightingPass.finish`."""
        policy = self._weighting.policy
        # Pieces of context parallelism add up; tensor-parallel ranks have the same tokens.
        group = policy.context_parallel_group
        if dist.get_world_size(group) > 1:
            dist.all_reduce(self._weights_BT, group=group)
        found = TokenWeights(torch.where(self._negative_BT, self._weights_BT, 1.0))
        return from_tap_stage(found, policy, self.layer, self._negative_BT.shape)
