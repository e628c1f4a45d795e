"""Weights from the pipeline stage that observed the states to all stages."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from torch import Tensor

from megatron_resrl.platform.distributed import broadcast_object, device
from megatron_resrl.policy.batches import MicroBatch
from megatron_resrl.policy.policy import Policy
from megatron_resrl.policy.results import TappedStates
from megatron_resrl.token_weighting.protocol import TokenWeights


def from_tap_stage(
    found: TokenWeights | None, policy: Policy, layer: int, shape: tuple[int, ...]
) -> TokenWeights:
    """Gives a pass's result to all pipeline stages. Collective over the pipeline.

    Args:
        found: Of the stage that has the layer; None on the others.
        policy: Says which stage that is.
        layer: See `WeightingPass.layer`.
        shape: [B, T] of the weights.
    """
    group = parallel_state.get_pipeline_model_parallel_group()
    if found is not None and dist.get_world_size(group) == 1:
        return found
    source = dist.get_global_rank(group, policy.tap_stage(layer))
    weights = torch.empty(shape, device=device()) if found is None else found.weights
    dist.broadcast(weights, src=source, group=group)
    # The tensor does not travel a second time inside of the object.
    rest = None if found is None else replace(found, weights=torch.empty(0))
    return replace(broadcast_object(rest, source, group), weights=weights)


def loss_elsewhere(policy: Policy, layer: int) -> str | None:
    """Why a weighting of a layer's states needs a scoring pass: the loss is on another stage."""
    stages, stage = parallel_state.get_pipeline_model_parallel_world_size(), policy.tap_stage(layer)
    if stage == stages - 1:
        return None
    return (
        f"the hidden states of resrl.layer = {layer} are on pipeline stage {stage}, and the loss "
        f"is on stage {stages - 1}"
    )


class ReceivingPass:
    """The pass on a pipeline stage without the layer, which gets the weights from the stage with
    it; see `WeightingPass`."""

    def __init__(
        self,
        policy: Policy,
        layer: int,
        order: Sequence[int],
        shape: tuple[int, ...],
        parts: Sequence[Sequence[int]] = (),
    ) -> None:
        """
        Args:
            policy: Says which stage has the layer.
            layer: See `WeightingPass.layer`.
            order: See `WeightingPass.order`.
            shape: [B, T] of the weights.
            parts: See `UpdatePass.parts`.
        """
        self.layer = layer
        self.order = order
        self.parts = parts
        self._policy = policy
        self._shape = shape

    def observe(self, states: TappedStates, micro_batch: MicroBatch) -> None:
        """Never called."""

    def weights_of(self, micro_batch: MicroBatch) -> Tensor:
        """Never called: the loss is on the stage with the layer."""
        raise RuntimeError("this pipeline stage has no weights before the pass is finished")

    def finish(self) -> TokenWeights:
        """See `WeightingPass.finish`."""
        return from_tap_stage(None, self._policy, self.layer, self._shape)
