"""Weightings that read no hidden states: all weights are known before a pass.

Shapes: B responses of this replica, T tokens of the step's longest response.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Sequence
from typing import Any

import torch
from torch import Tensor

from megatron_resrl.platform.distributed import device
from megatron_resrl.policy.batches import MicroBatch
from megatron_resrl.policy.results import TappedStates
from megatron_resrl.policy.token_budget import MicroBatchLimit
from megatron_resrl.rollout.batch import TrainingBatch
from megatron_resrl.token_weighting.context import WeightingContext
from megatron_resrl.token_weighting.parts import parts_of_batch
from megatron_resrl.token_weighting.protocol import TokenWeights


class FixedWeighting(ABC):
    """Weights from what is known of a batch after grading; a subclass defines `weights`."""

    def __init__(self, context: WeightingContext) -> None:
        """
        Args:
            context: Of the run.
        """
        self.settings = context.settings

    @abstractmethod
    def weights(self, batch: TrainingBatch) -> Tensor:
        """The weights of tokens.

        Args:
            batch: Of this replica, on the CPU, whole groups.

        Returns:
            [B, T] float on the CPU, at least 0; entries outside of the loss mask are unused.
        """

    def begin(self, batch: TrainingBatch, step: int) -> FixedPass:
        """See `TokenWeighting.begin`."""
        return FixedPass(self.weights(batch), range(len(batch)))

    def obstacle(self) -> str | None:
        """None."""
        return None

    def scored_first(self, batch: TrainingBatch, limit: MicroBatchLimit) -> set[int]:
        """No group."""
        return set()

    def begin_update(
        self, batch: TrainingBatch, step: int, first: Collection[int], limit: MicroBatchLimit
    ) -> FixedPass:
        """See `SinglePassWeighting.begin_update`."""
        return FixedPass(self.weights(batch), *parts_of_batch(batch, limit, first))

    def summarise(self, reports: Sequence[Any], *, detailed: bool) -> dict[str, float]:
        """No metrics."""
        return {}


class Uniform(FixedWeighting):
    """No weighting: every token has weight 1."""

    def __init__(self, context: WeightingContext | None = None) -> None:
        """
        Args:
            context: Not used.
        """

    def weights(self, batch: TrainingBatch) -> Tensor:
        """Ones."""
        return torch.ones(batch.loss_mask.shape)


class FixedPass:
    """See `WeightingPass` and `UpdatePass`."""

    layer: int | None = None

    def __init__(
        self, weights: Tensor, order: Sequence[int], parts: Sequence[Sequence[int]] = ()
    ) -> None:
        """
        Args:
            weights: [B, T] float.
            order: Rows that are scored.
            parts: See `UpdatePass.parts`.
        """
        self.order = order
        self.parts = parts
        self._weights = weights.float().to(device())

    def observe(self, states: TappedStates, micro_batch: MicroBatch) -> None:
        """Never called."""

    def weights_of(self, micro_batch: MicroBatch) -> Tensor:
        """See `UpdatePass.weights_of`."""
        return self._weights[micro_batch.sequence_index, micro_batch.response_position]

    def finish(self) -> TokenWeights:
        """See `WeightingPass.finish`."""
        return TokenWeights(self._weights)
