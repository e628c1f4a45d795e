"""Base of weightings whose weights depend on each token's own hidden state alone.

Shapes: m generated tokens of a micro-batch on this rank, H hidden size, B responses of this
replica, T tokens of the step's longest response.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from torch import Tensor

from megatron_resrl.platform.distributed import device
from megatron_resrl.policy.batches import MicroBatch
from megatron_resrl.policy.results import TappedStates
from megatron_resrl.rollout.batch import TrainingBatch
from megatron_resrl.token_weighting.context import WeightingContext
from megatron_resrl.token_weighting.protocol import TokenWeights
from megatron_resrl.token_weighting.stages import ReceivingPass, from_tap_stage


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
        return TokenwisePass(self, batch)

    def summarise(self, reports: Sequence[Any], *, detailed: bool) -> dict[str, float]:
        """No metrics."""
        return {}


class TokenwisePass:
    """The pass on the stage with the layer, see `WeightingPass`."""

    def __init__(self, weighting: TokenwiseWeighting, batch: TrainingBatch) -> None:
        """
        Args:
            weighting: Gives the weights.
            batch: This replica's responses.
        """
        self.layer = weighting.layer
        self.order = range(len(batch))
        self._weighting = weighting
        self._negative_BT = (batch.loss_mask & ~batch.positive[:, None]).to(device())
        self._weights_BT = torch.zeros(batch.loss_mask.shape, device=device())

    @torch.no_grad()
    def observe(self, states: TappedStates, micro_batch: MicroBatch) -> None:
        """Keeps one number per token."""
        chosen = states.token.to(device())
        token = micro_batch.sequence_index[chosen], micro_batch.response_position[chosen]
        self._weights_BT[token] = self._weighting.weights(states.hidden).float()

    def finish(self) -> TokenWeights:
        """See `WeightingPass.finish`."""
        policy = self._weighting.policy
        # Slices of sequence parallelism and pieces of context parallelism add up; without
        # sequence parallelism all tensor-parallel ranks have the same tokens.
        group = policy.context_parallel_group
        if policy.config.sequence_parallel:
            group = parallel_state.get_tensor_and_context_parallel_group()
        if dist.get_world_size(group) > 1:
            dist.all_reduce(self._weights_BT, group=group)
        found = TokenWeights(torch.where(self._negative_BT, self._weights_BT, 1.0))
        return from_tap_stage(found, policy, self.layer, self._negative_BT.shape)
