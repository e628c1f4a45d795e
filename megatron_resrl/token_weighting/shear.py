"""SHEAR (arXiv 2604.23318): tokens count by how far their span is from the other side's spans.

    d_k = min over the spans l of all responses of the other side of W(P_k, P_l)
    w_t = (max over the spans k with token t of d_k) / (mean norm of the group's states)

P_k is the uniform distribution on the states of a span's tokens, and W Sinkhorn's approximation of
the Wasserstein-1 distance. The paper leaves some things open. Chosen here: the state of a token is
the one that predicts it, after the final norm; spans are cut from the generated tokens alone, and
the last one is the first that reaches the response's end; W is the transport cost of the entropic
plan, without its entropy; the weight of the entropy is a multiple of the mean norm, so that it
means the same for every model.

Shapes: B responses of this replica, T tokens of the step's longest response, H hidden size, N
generated tokens of a response, S spans of a response.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from torch import Tensor

from megatron_resrl.policy.policy import Policy
from megatron_resrl.rollout.batch import TrainingBatch
from megatron_resrl.token_weighting.context import WeightingContext
from megatron_resrl.token_weighting.options import ShearOptions
from megatron_resrl.token_weighting.span_distances import nearest_opposing, token_maxima
from megatron_resrl.token_weighting.stages import ReceivingPass
from megatron_resrl.token_weighting.whole_groups import (
    LAYER,
    SidesReport,
    WholeGroupPass,
    rows_of_groups,
    summary_of_sides,
)


class ShearWeighting:
    """Weights of both sides; all are 1 in a group that has only one."""

    def __init__(self, context: WeightingContext) -> None:
        """
        Args:
            context: Of the run.
        """
        self.policy = context.policy
        self.options: ShearOptions = context.options

    def begin(self, batch: TrainingBatch, step: int) -> ShearPass | ReceivingPass:
        """See `TokenWeighting.begin`."""
        groups = rows_of_groups(batch)
        order = [row for rows in groups for row in rows]
        if not self.policy.holds_tap(LAYER):
            return ReceivingPass(self.policy, LAYER, order, batch.loss_mask.shape)
        return ShearPass(self.policy, self.options, batch, groups)

    def summarise(self, reports: Sequence[SidesReport], *, detailed: bool) -> dict[str, float]:
        """`shear/..`: how many groups are compared, and the mean weight of each side."""
        return summary_of_sides("shear", reports)


class ShearPass(WholeGroupPass):
    """The pass on the stage with the layer, see `WeightingPass`."""

    def __init__(
        self,
        policy: Policy,
        options: ShearOptions,
        batch: TrainingBatch,
        groups: Sequence[Sequence[int]],
    ) -> None:
        """
        Args:
            policy: See `WholeGroupPass`.
            options: Of the distances.
            batch: See `WholeGroupPass`.
            groups: See `WholeGroupPass`.
        """
        super().__init__(policy, batch, groups)
        self._options = options

    def _weights_of(self, correct: Sequence[int], incorrect: Sequence[int]) -> dict[int, Tensor]:
        """Row -> [N] fp32 weights of a group that has both sides. Collective like `_weigh`."""
        rows = [*correct, *incorrect]
        norms = torch.cat([self._states[row].double().norm(dim=1) for row in rows])
        # Divided beforehand, so that distances are weights.
        states = [self._states[row].double() / norms.mean() for row in rows]
        # Ranks that have the same states share the work; the smallest of what each finds counts.
        sharers = parallel_state.get_tensor_and_context_parallel_group()
        near_correct, near_incorrect = nearest_opposing(
            states[: len(correct)],
            states[len(correct) :],
            self._options,
            slice(dist.get_rank(sharers), None, dist.get_world_size(sharers)),
        )
        near = torch.cat([*near_correct, *near_incorrect])
        if dist.get_world_size(sharers) > 1:
            dist.all_reduce(near, op=dist.ReduceOp.MIN, group=sharers)
        spans = near.split([len(each) for each in (*near_correct, *near_incorrect)])
        return {
            row: token_maxima(spans_S, self._count_B[row], self._options)
            for row, spans_S in zip(rows, spans, strict=True)
        }
