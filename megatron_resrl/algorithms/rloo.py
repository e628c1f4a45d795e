"""RLOO: REINFORCE with a leave-one-out baseline (arXiv 2402.14740)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from megatron_resrl.algorithms.advantages import leave_one_out
from megatron_resrl.algorithms.algorithm import Algorithm


@dataclass(frozen=True)
class RLOO(Algorithm):
    """A = r - mean of the other rewards of the group.

    The paper takes one update per batch and has no ratio; with `algorithm.updates_per_step: 1` the
    clipped objective has that gradient.
    """

    name: ClassVar[str] = "rloo"
    source: ClassVar[str] = "arXiv 2402.14740"

    def sample_advantages(self, rewards: Tensor, scores: Tensor, group: Tensor) -> Tensor:
        """A of each response; exactly 0 where the rewards of a group are equal."""
        return leave_one_out(rewards, group)
