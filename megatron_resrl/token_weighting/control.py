"""Controls of any weighting: its weights without what they say of single tokens.

Both run the weighting that they control, and change its weights response by response. All tokens of
a response count the same in the loss, |A_i| c_i, so that the mean of a response's weights is kept
as the loss sees it; and with `shuffled` their variance, and every other moment.

Shapes: B responses of this replica, T tokens of the step's longest response.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from megatron_resrl.platform.distributed import on_device
from megatron_resrl.policy.batches import MicroBatch
from megatron_resrl.policy.results import TappedStates
from megatron_resrl.rollout.batch import TrainingBatch
from megatron_resrl.subspace import sampling_key
from megatron_resrl.token_weighting.context import WeightingContext
from megatron_resrl.token_weighting.protocol import TokenWeights, WeightingPass
from megatron_resrl.token_weighting.registry import ChosenWeighting, get_weighting

# Not the random streams of ResRL's sample and of its control, which have the same key.
_STREAM = 0x2C1B3C6D


class ControlWeighting:
    """`shuffled` or `averaged`."""

    def __init__(self, context: WeightingContext) -> None:
        """
        Args:
            context: Of the run; its name says which control, its options the weighting that is
                controlled.
        """
        self.name = context.name
        self.seed = context.seed
        of: ChosenWeighting = context.options
        self.controlled = get_weighting(of, replace(context, name=of.name, options=of.options))

    def begin(self, batch: TrainingBatch, step: int) -> ControlPass:
        """See `TokenWeighting.begin`."""

        def changed(weights_BT: Tensor) -> Tensor:
            if self.name == "averaged":
                return averaged(weights_BT, batch.loss_mask)
            return weights_BT.gather(1, on_device(self._places(batch, step), weights_BT.device))

        return ControlPass(self.controlled.begin(batch, step), changed)

    def summarise(self, reports: Sequence[Any], *, detailed: bool) -> dict[str, float]:
        """Metrics of the weighting that is controlled."""
        return self.controlled.summarise(reports, detailed=detailed)

    def _places(self, batch: TrainingBatch, step: int) -> Tensor:
        """[B, T] int64: whose weight each token gets, a generated token of the same response."""
        places_BT = torch.arange(batch.loss_mask.shape[1]).repeat(len(batch), 1)
        generators = {
            group: torch.Generator().manual_seed(sampling_key(self.seed, step, group) ^ _STREAM)
            for group in set(batch.group_ids.tolist())
        }
        for row, group in enumerate(batch.group_ids.tolist()):
            own = batch.loss_mask[row].nonzero()[:, 0]
            order = torch.randperm(len(own), generator=generators[group])
            places_BT[row, own] = own[order]
        return places_BT


class ControlPass:
    """The pass of the weighting that is controlled, with other weights in the end."""

    def __init__(self, controlled: WeightingPass, changed: Callable[[Tensor], Tensor]) -> None:
        """
        Args:
            controlled: Its pass.
            changed: Its weights [B, T] -> those of the control.
        """
        self.layer = controlled.layer
        self.order = controlled.order
        self._controlled = controlled
        self._changed = changed

    def observe(self, states: TappedStates, micro_batch: MicroBatch) -> None:
        """See `WeightingPass.observe`."""
        self._controlled.observe(states, micro_batch)

    def finish(self) -> TokenWeights:
        """See `WeightingPass.finish`."""
        found = self._controlled.finish()
        return replace(found, weights=self._changed(found.weights))


def averaged(weights_BT: Tensor, loss_mask_BT: Tensor) -> Tensor:
    """The mean weight of each response's generated tokens, in their place.

    Args:
        weights_BT: [B, T] fp32.
        loss_mask_BT: [B, T] bool on the CPU.

    Returns:
        [B, T] fp32.
    """
    mask_BT = on_device(loss_mask_BT, weights_BT.device)
    total_B = weights_BT.double().masked_fill(~mask_BT, 0.0).sum(1)
    mean_B = (total_B / mask_BT.sum(1).clamp(min=1)).float()
    return torch.where(mask_BT, mean_B[:, None], weights_BT)
