"""No weighting: every token has weight 1."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from megatron_resrl.platform.distributed import device
from megatron_resrl.policy.batches import MicroBatch
from megatron_resrl.policy.results import TappedStates
from megatron_resrl.rollout.batch import TrainingBatch
from megatron_resrl.token_weighting.protocol import TokenWeights


class Uniform:
    """The weighting of algorithms that use no weights; it reads no states."""

    def begin(self, batch: TrainingBatch, step: int) -> UniformPass:
        """See `TokenWeighting.begin`."""
        return UniformPass(batch)

    def summarise(self, reports: Sequence[Any], *, detailed: bool) -> dict[str, float]:
        """No metrics."""
        return {}


class UniformPass:
    """See `WeightingPass`."""

    layer: int | None = None

    def __init__(self, batch: TrainingBatch) -> None:
        """
        Args:
            batch: This replica's responses.
        """
        self.order = range(len(batch))
        self._shape = batch.loss_mask.shape

    def observe(self, states: TappedStates, micro_batch: MicroBatch) -> None:
        """Never called."""

    def finish(self) -> TokenWeights:
        """Ones."""
        return TokenWeights(torch.ones(self._shape, device=device()))
