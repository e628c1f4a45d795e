"""ResRL's weights (arXiv 2605.00380), its controls and its inversion, in any layout.

Glue between a replica's batch, the policy and `subspace`: which tokens take part, which ranks share
them, which method exchanges them, and in which order responses are scored.

Shapes: B responses of this replica, T tokens of the step's longest response.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import torch
from megatron.core import parallel_state
from torch import Tensor

from megatron_resrl.data.think import think_mask
from megatron_resrl.platform.distributed import device
from megatron_resrl.policy.batches import MicroBatch
from megatron_resrl.policy.policy import Policy
from megatron_resrl.policy.prefixes import FedLength
from megatron_resrl.policy.results import TappedStates
from megatron_resrl.policy.token_budget import MicroBatchLimit
from megatron_resrl.rollout.batch import TrainingBatch
from megatron_resrl.subspace import (
    GroupPlan,
    GroupReport,
    SubspaceSettings,
    TokenShardGroup,
    TokenWeightStream,
    WindowLimits,
    automatic_method,
    make_plan,
    sampling_key,
    summarise,
)
from megatron_resrl.token_weighting.context import WeightingContext
from megatron_resrl.token_weighting.parts import parts_of_plan
from megatron_resrl.token_weighting.protocol import TokenWeights
from megatron_resrl.token_weighting.stages import ReceivingPass, from_tap_stage, loss_elsewhere

_CONTROLS = ("constant", "random", "inverted")


class ResRLWeighting:
    """Weights of incorrect tokens from their residuals to the subspace of the correct ones.

    Attributes:
        method: `rows` or `gram`: what ranks exchange of a group's correct tokens.
        ranks: Who shares the tokens of a group with this rank.
    """

    def __init__(self, context: WeightingContext) -> None:
        """
        Args:
            context: Of the run; its name says whether the weights are the method's, or others made
                of them.
        """
        self.policy = context.policy
        self.settings = context.settings
        self.seed = context.seed
        self.think_markers = context.think_markers
        self.method = self.settings.subspace_method
        if self.method == "auto":
            tokens = min(self.settings.max_positive_tokens, context.max_positive_tokens)
            self.method = automatic_method(tokens, self.policy.config.hidden_size)
        self.subspace_settings = SubspaceSettings(
            rank=self.settings.rank,
            max_positive_tokens=self.settings.max_positive_tokens,
            quantiles=self.settings.quantiles,
            floor=self.settings.floor,
            weights=context.name if context.name in _CONTROLS else "residual",
        )
        self.ranks = _token_shard_group(self.policy)

    def begin(self, batch: TrainingBatch, step: int) -> ResRLPass | ReceivingPass:
        """Plans a pass; see `TokenWeighting.begin`."""
        return self._begin(batch, step)

    def obstacle(self) -> str | None:
        """See `loss_elsewhere`."""
        return loss_elsewhere(self.policy, self.settings.layer)

    def scored_first(self, batch: TrainingBatch, limit: MicroBatchLimit) -> set[int]:
        """Groups with more incorrect responses than a micro-batch has room for."""
        incorrect: dict[int, list[FedLength]] = {}
        for row, length in enumerate(limit.lengths_of(batch)):
            if not batch.positive[row]:
                incorrect.setdefault(int(batch.group_ids[row]), []).append(length)
        correct = set(batch.group_ids[batch.positive].tolist())
        too_many = {group for group, own in incorrect.items() if not limit.allows(own)}
        return correct & too_many

    def begin_update(
        self, batch: TrainingBatch, step: int, first: Collection[int], limit: MicroBatchLimit
    ) -> ResRLPass | ReceivingPass:
        """See `SinglePassWeighting.begin_update`."""
        return self._begin(batch, step, first, limit)

    def _begin(
        self,
        batch: TrainingBatch,
        step: int,
        first: Collection[int] = (),
        limit: MicroBatchLimit | None = None,
    ) -> ResRLPass | ReceivingPass:
        thought_BT = self._thought(batch)
        # Excluded responses are neither correct nor incorrect.
        counted_BT = batch.loss_mask & ~batch.excluded[:, None] & ~thought_BT
        plan = make_plan(
            counted_BT,
            batch.positive,
            batch.group_ids,
            self.subspace_settings,
            key=lambda group: sampling_key(self.seed, step, group),
            ranks=self.ranks.size,
            limits=WindowLimits(
                rows=self.settings.window_tokens,
                groups=self._matrices() if self.method == "gram" else None,
                first=first,
            ),
            # What a token counts in the loss, which controls have to match: |A_i| c_i.
            share_B=batch.advantages.abs() * batch.coefficients,
        )
        parts = [] if limit is None else parts_of_plan(plan, batch, limit, first)
        scored = plan.order[: len(plan.order) - sum(map(len, parts))]
        layer = self.settings.layer
        if not self.policy.holds_tap(layer):
            return ReceivingPass(self.policy, layer, scored, thought_BT.shape, parts)
        unpunished_BT = thought_BT & ~batch.positive[:, None]
        return ResRLPass(self, plan, batch, unpunished_BT, scored, parts)

    def summarise(self, reports: Sequence[GroupReport], *, detailed: bool) -> dict[str, float]:
        """`resrl/..`: see `subspace.report`; with the spectrum where details are asked for."""
        return summarise(reports, spectrum=detailed) if reports else {}

    def _matrices(self) -> int:
        """Gram matrices of a window that a rank solves: one, or more where it may hold more."""
        tokens = self.settings.window_tokens or 0
        return max(1, tokens // self.settings.max_positive_tokens)

    def _thought(self, batch: TrainingBatch) -> Tensor:
        """[B, T] bool: tokens of thinking that the weighting leaves out."""
        if self.think_markers is None:
            return torch.zeros_like(batch.loss_mask)
        return think_mask(
            batch.token_ids,
            batch.prompt_lengths,
            batch.response_lengths,
            self.think_markers,
            batch.loss_mask.shape[1],
        )


class ResRLPass:
    """The pass on the stage with the layer, see `WeightingPass` and `UpdatePass`.

    Responses are in the plan's order: of a window, correct ones come first.
    """

    def __init__(
        self,
        weighting: ResRLWeighting,
        plan: GroupPlan,
        batch: TrainingBatch,
        unpunished_BT: Tensor,
        order: Sequence[int],
        parts: Sequence[Sequence[int]] = (),
    ) -> None:
        """
        Args:
            weighting: Whose pass it is.
            plan: Of the batch.
            batch: This replica's responses.
            unpunished_BT: [B, T] bool: tokens whose weight is 0 instead.
            order: The plan's responses that are scored.
            parts: Its responses that an update observes; see `UpdatePass.parts`.
        """
        self.layer = weighting.settings.layer
        self.order = order
        self.parts = parts
        self._weighting = weighting
        self._groups = plan.group_ids
        self._unpunished_BT = unpunished_BT.to(device())
        self._sent_before = weighting.ranks.sent_bytes
        self._stream = TokenWeightStream(
            plan,
            weighting.subspace_settings,
            method=weighting.method,
            device=device(),
            ranks=weighting.ranks,
            name=lambda row: f"{batch.name(row)}, tapped at resrl.layer {self.layer}",
            order=[*order, *(row for part in parts for row in part)],
            at_once=bool(parts),
        )

    def observe(self, states: TappedStates, micro_batch: MicroBatch) -> None:
        """Collects correct tokens, or scores incorrect ones; see `TokenWeightStream.add`."""
        self._stream.add(
            states.hidden,
            micro_batch.host.sequence_index[states.token],
            micro_batch.host.response_position[states.token],
            micro_batch.sequences,
        )

    def weights_of(self, micro_batch: MicroBatch) -> Tensor:
        """See `UpdatePass.weights_of`."""
        token = micro_batch.sequence_index, micro_batch.response_position
        return self._stream.weights[token].masked_fill(self._unpunished_BT[token], 0.0)

    def finish(self) -> TokenWeights:
        """See `WeightingPass.finish`."""
        reports = dict(zip(self._groups, self._stream.finish(), strict=True))
        sent_bytes = self._weighting.ranks.sent_bytes - self._sent_before
        found = TokenWeights(
            self._stream.weights.masked_fill(self._unpunished_BT, 0.0),
            reports,
            totals={"resrl/sent_bytes": float(sent_bytes)},
            peaks={
                "resrl/peak_bytes": float(self._stream.peak_bytes),
                "resrl/method_is_gram": float(self._weighting.method == "gram"),
            },
        )
        return from_tap_stage(found, self._weighting.policy, self.layer, self._unpunished_BT.shape)


def _token_shard_group(policy: Policy) -> TokenShardGroup:
    """The ranks of this stage that tap tokens of the same groups.

    Tensor-parallel ranks tap slices of each sequence under sequence parallelism, else copies;
    context-parallel ranks tap pieces.
    """
    group = parallel_state.get_tensor_and_context_parallel_group()
    size = policy.config.tensor_model_parallel_size
    if policy.config.sequence_parallel or size == 1:
        return TokenShardGroup(group)
    return TokenShardGroup(
        group, ranks_per_token=size, token_rank=parallel_state.get_tensor_model_parallel_rank()
    )
