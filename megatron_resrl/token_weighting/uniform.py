"""No weighting: every token has weight 1."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import torch
from torch import Tensor

from megatron_resrl.platform.distributed import device
from megatron_resrl.policy.batches import MicroBatch
from megatron_resrl.policy.results import TappedStates
from megatron_resrl.policy.token_budget import MicroBatchLimit
from megatron_resrl.rollout.batch import TrainingBatch
from megatron_resrl.token_weighting.parts import parts_of_batch
from megatron_resrl.token_weighting.protocol import TokenWeights


class Uniform:
    """The weighting of algorithms that use no weights; it reads no states."""

    def begin(self, batch: TrainingBatch, step: int) -> UniformPass:
        """See `TokenWeighting.begin`."""
        return UniformPass(batch, range(len(batch)))

    def obstacle(self) -> str | None:
        """None."""
        return None

    def scored_first(self, batch: TrainingBatch, limit: MicroBatchLimit) -> set[int]:
        """No group."""
        return set()

    def begin_update(
        self, batch: TrainingBatch, step: int, first: Collection[int], limit: MicroBatchLimit
    ) -> UniformPass:
        """See `SinglePassWeighting.begin_update`."""
        return UniformPass(batch, *parts_of_batch(batch, limit, first))

    def summarise(self, reports: Sequence[Any], *, detailed: bool) -> dict[str, float]:
        """No metrics."""
        return {}


class UniformPass:
    """See `WeightingPass` and `UpdatePass`."""

    layer: int | None = None

    def __init__(
        self, batch: TrainingBatch, order: Sequence[int], parts: Sequence[Sequence[int]] = ()
    ) -> None:
        """
        Args:
            batch: This replica's responses.
            order: Rows that are scored.
            parts: See `UpdatePass.parts`.
        """
        self.order = order
        self.parts = parts
        self._shape = batch.loss_mask.shape

    def observe(self, states: TappedStates, micro_batch: MicroBatch) -> None:
        """Never called."""

    def weights_of(self, micro_batch: MicroBatch) -> Tensor:
        """Ones."""
        return torch.ones(micro_batch.targets.shape, device=device())

    def finish(self) -> TokenWeights:
        """Ones."""
        return TokenWeights(torch.ones(self._shape, device=device()))
