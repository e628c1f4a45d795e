"""Hidden states of the scoring pass -> one weight per response token, group by group."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist

from megatron_resrl.config.schema import ResrlConfig
from megatron_resrl.data.packing import MicroBatch
from megatron_resrl.policy.policy import TappedStates
from megatron_resrl.subspace import GroupReport, group_token_weights


@dataclass
class _Held:
    """States waiting for the rest of their group: [m, H], and which token each one predicts."""

    hidden: torch.Tensor
    sequence: torch.Tensor
    position: torch.Tensor

    def where(self, chosen: torch.Tensor) -> _Held:
        return _Held(self.hidden[chosen], self.sequence[chosen], self.position[chosen])


class GroupedTokenWeights:
    """Holds hidden states until a group is complete, weighs its tokens, and lets the states go.

    Sequences of a group are neighbours, so at most one group is incomplete at a time, whatever
    the size of micro-batches. Pass `add` to `Policy.score`; read `weights` and `reports` after.

    Attributes:
        weights: [B, T] fp32, 1 where nothing applies; the same on all tensor-parallel ranks.
        reports: One per group, in order.
    """

    def __init__(
        self,
        group: Sequence[int],
        positive: torch.Tensor,
        longest: int,
        settings: ResrlConfig,
        *,
        seed: Callable[[int], int],
        split_over: dist.ProcessGroup | None,
    ) -> None:
        """
        Args:
            group: Index of the prompt of each of this replica's B sequences, groups together.
            positive: [B] bool: spans the subspace (correct) rather than being weighed (wrong).
            longest: Response tokens of the longest sequence, T.
            settings: Rank, sample, quantiles and floor.
            seed: Key of a group's random choices.
            split_over: Ranks that hold different tokens of the same sequences (tensor-parallel
                ranks under sequence parallelism), or None.
        """
        self.group = list(group)
        self.positive = positive
        self.settings = settings
        self.seed = seed
        self.split_over = split_over
        self.weights = torch.ones(len(group), longest, device=positive.device)
        self.reports: list[GroupReport] = []
        self._held: list[_Held] = []
        self._weighed = 0

    def add(self, states: TappedStates, batch: MicroBatch) -> None:
        """Takes one micro-batch's states; weighs the groups that it completes."""
        sequence = batch.sequence_index[states.token]
        position = batch.response_position[states.token]
        self._held.append(_Held(states.hidden, sequence, position))
        if len(batch.sequence_index) == 0:
            return
        arrived = int(batch.sequence_index[-1]) + 1
        while self._weighed < arrived:
            last = self._end_of_group(self._weighed)
            if last > arrived:
                break
            self._weigh(self._weighed, last)
            self._weighed = last

    def _end_of_group(self, first: int) -> int:
        last = first
        while last < len(self.group) and self.group[last] == self.group[first]:
            last += 1
        return last

    def _weigh(self, first: int, last: int) -> None:
        """Weighs the sequences [first, last), which are one whole group."""
        held = self._merge()
        inside = held.sequence < last
        mine = held.where(inside)
        self._held = [held.where(~inside)]
        weights, report = group_token_weights(
            mine.hidden,
            (mine.sequence - first) * self.weights.shape[1] + mine.position,
            self.positive[mine.sequence],
            rank=self.settings.rank,
            max_positive_tokens=self.settings.max_positive_tokens,
            quantiles=self.settings.quantiles,
            floor=self.settings.floor,
            seed=self.seed(self.group[first]),
            process_group=self.split_over,
        )
        self.reports.append(report)
        # As differences from 1, so that the ranks' disjoint tokens add up to the whole.
        change = torch.zeros_like(self.weights[first:last])
        change[mine.sequence - first, mine.position] = weights - 1.0
        if self.split_over is not None:
            dist.all_reduce(change, group=self.split_over)
        self.weights[first:last] += change

    def _merge(self) -> _Held:
        return _Held(
            torch.cat([held.hidden for held in self._held]),
            torch.cat([held.sequence for held in self._held]),
            torch.cat([held.position for held in self._held]),
        )
