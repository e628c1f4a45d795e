"""Dr.GRPO: GRPO without its two divisions by what differs between groups (arXiv 2503.20783)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from megatron_resrl.algorithms.advantages import group_normalised
from megatron_resrl.algorithms.algorithm import Algorithm


@dataclass(frozen=True)
class DrGRPO(Algorithm):
    """A = r - mean of the group; no standard deviation, and no mean over a response's tokens."""

    name: ClassVar[str] = "dr_grpo"
    source: ClassVar[str] = "arXiv 2503.20783"
    published_with: ClassVar[Mapping[str, Any]] = {"algorithm.aggregation": "constant_length"}

    def sample_advantages(self, rewards: Tensor, scores: Tensor, group: Tensor) -> Tensor:
        """A of each response; exactly 0 where the rewards of a group are equal."""
        return group_normalised(rewards, group, scale_by_std=False)
