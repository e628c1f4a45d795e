"""A pass that holds the states of one prompt group at a time, whole on every rank that shares it.

Shapes: B responses of this replica, T tokens of the step's longest response, H hidden size, N
generated tokens of a response.
"""

from __future__ import annotations

import abc
import itertools
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from megatron_resrl.platform.distributed import device, on_device
from megatron_resrl.policy.batches import MicroBatch
from megatron_resrl.policy.policy import Policy
from megatron_resrl.policy.results import TappedStates
from megatron_resrl.rollout.batch import TrainingBatch
from megatron_resrl.token_weighting.protocol import TokenWeights
from megatron_resrl.token_weighting.stages import from_tap_stage

LAYER = -1
"""After the final norm: what the output layer multiplies."""


@dataclass(frozen=True)
class SidesReport:
    """Of a prompt group; NaN where it lacks a side."""

    correct: float
    """Mean weight over the tokens of correct responses."""
    incorrect: float
    """Mean weight over those of incorrect ones."""

    @property
    def compared(self) -> bool:
        """Whether the group has both sides."""
        return self.correct == self.correct


class WholeGroupPass(abc.ABC):
    """The pass on the stage with the layer, see `WeightingPass`.

    Responses come group by group, and the states of one group are held at a time. All weights are 1
    in a group that has only one side.
    """

    layer = LAYER

    def __init__(
        self, policy: Policy, batch: TrainingBatch, groups: Sequence[Sequence[int]]
    ) -> None:
        """
        Args:
            policy: Its layout says which ranks have which states.
            batch: This replica's responses.
            groups: Rows of each group, in the order of the pass.
        """
        self.order = [row for rows in groups for row in rows]
        self._policy = policy
        self._batch = batch
        self._groups = list(groups)
        self._count_B = batch.num_generated_tokens.tolist()
        self._included_B = (~batch.excluded & (batch.num_generated_tokens > 0)).tolist()
        # Place of each generated token among its response's.
        self._place_BT = batch.loss_mask.cumsum(1) - 1
        self._states: dict[int, Tensor] = {}
        self._weights_BT = torch.ones(batch.loss_mask.shape, device=device())
        self._reports: dict[int, Tensor] = {}

    @torch.no_grad()
    def observe(self, states: TappedStates, micro_batch: MicroBatch) -> None:
        """Keeps the states until a group is complete. Collective where ranks share the tokens."""
        self._states |= self._whole(states, micro_batch)
        while self._groups and all(row in self._states for row in self._groups[0]):
            rows = self._groups.pop(0)
            self._weigh(rows)
            for row in rows:
                del self._states[row]

    def finish(self) -> TokenWeights:
        """See `WeightingPass.finish`."""
        # Read from the device at once; a replica may have no group.
        means = torch.stack(list(self._reports.values())).tolist() if self._reports else []
        reports = {
            group: SidesReport(*pair) for group, pair in zip(self._reports, means, strict=True)
        }
        found = TokenWeights(self._weights_BT, reports)
        return from_tap_stage(found, self._policy, self.layer, self._weights_BT.shape)

    @abc.abstractmethod
    def _weights_of(self, correct: Sequence[int], incorrect: Sequence[int]) -> dict[int, Tensor]:
        """Row -> [N] fp32 weights of a group that has both sides, from `_states`.

        Collective over the ranks that share the group.

        Args:
            correct: Rows of correct responses.
            incorrect: Rows of incorrect ones.
        """

    def _whole(self, states: TappedStates, micro_batch: MicroBatch) -> dict[int, Tensor]:
        """Row -> [N, H] states of all its generated tokens, on every rank that shares them."""
        counts = [self._count_B[row] for row in micro_batch.sequences]
        start_B = torch.zeros(len(self._batch), dtype=torch.int64)
        for row, end in zip(micro_batch.sequences[1:], itertools.accumulate(counts), strict=False):
            start_B[row] = end
        host = micro_batch.host
        row_m, position_m = host.sequence_index[states.token], host.response_position[states.token]
        place_m = on_device(start_B[row_m] + self._place_BT[row_m, position_m], device())
        # Sums of ranks that have different tokens are exact: all but one add zeros. In fp32,
        # because gloo does not know every number format.
        whole_NH = torch.zeros(sum(counts), states.hidden.shape[1], device=device())
        whole_NH[place_m] = states.hidden.float()
        for group in self._groups_with_other_tokens():
            dist.all_reduce(whole_NH, group=group)
        parts = whole_NH.to(states.hidden.dtype).split(counts)
        return dict(zip(micro_batch.sequences, parts, strict=True))

    def _groups_with_other_tokens(self) -> list[dist.ProcessGroup]:
        """Tensor-parallel ranks have slices under sequence parallelism, else copies; and
        context-parallel ranks have pieces."""
        groups = [self._policy.context_parallel_group]
        if self._policy.config.sequence_parallel:
            groups.append(self._policy.tensor_parallel_group)
        return [group for group in groups if dist.get_world_size(group) > 1]

    def _weigh(self, rows: Sequence[int]) -> None:
        """The weights of a complete group. Collective over the ranks that share it."""
        included = [row for row in rows if self._included_B[row]]
        correct = [row for row in included if self._batch.positive[row]]
        incorrect = [row for row in included if not self._batch.positive[row]]
        mean_2 = torch.full((2,), torch.nan, dtype=torch.float64, device=device())
        if correct and incorrect:
            weights = self._weights_of(correct, incorrect)
            for row, weights_N in weights.items():
                token = on_device(self._batch.loss_mask[row].nonzero()[:, 0], device())
                self._weights_BT[row, token] = weights_N
            sides = ([weights[row] for row in side] for side in (correct, incorrect))
            mean_2 = torch.stack([torch.cat(side).double().mean() for side in sides])
        self._reports[int(self._batch.group_ids[rows[0]])] = mean_2


def summary_of_sides(name: str, reports: Sequence[SidesReport]) -> dict[str, float]:
    """How many groups have both sides, and the mean weight of each side over these groups.

    Args:
        name: What the names of the metrics begin with.
        reports: May be empty.
    """
    if not reports:
        return {}
    compared = [each for each in reports if each.compared]
    found = {f"{name}/compared_fraction": len(compared) / len(reports)}
    if compared:
        for side in ("correct", "incorrect"):
            mean = sum(getattr(each, side) for each in compared) / len(compared)
            found[f"{name}/mean_weight_{side}"] = mean
    return found


def rows_of_groups(batch: TrainingBatch) -> list[list[int]]:
    """Rows of each group, as the groups begin in the batch."""
    groups: dict[int, list[int]] = defaultdict(list)
    for row, group in enumerate(batch.group_ids.tolist()):
        groups[group].append(row)
    return list(groups.values())
