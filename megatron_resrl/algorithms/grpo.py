"""GRPO: rewards normalised within the prompt's group (arXiv 2402.03300)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from megatron_resrl.algorithms.advantages import group_normalised
from megatron_resrl.algorithms.algorithm import Algorithm
from megatron_resrl.algorithms.options import require_bool, require_not_negative


@dataclass(frozen=True)
class GRPO(Algorithm):
    """A = (r - mean) / (std + eps), the same for all tokens of a response."""

    name: ClassVar[str] = "grpo"
    source: ClassVar[str] = "arXiv 2402.03300"
    published_with: ClassVar[Mapping[str, Any]] = {"algorithm.aggregation": "sequence_mean"}

    eps: float = 1e-6
    """Added to the group's standard deviation; verl's value (TRL and Megatron-RL: 1e-4)."""
    scale_by_std: bool = True
    """False: A = r - mean, as in Dr.GRPO (arXiv 2503.20783)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_not_negative("eps", self.eps)
        require_bool("scale_by_std", self.scale_by_std)

    def sample_advantages(self, rewards: Tensor, scores: Tensor, group: Tensor) -> Tensor:
        """A of each response; exactly 0 where the rewards of a group are equal."""
        return group_normalised(rewards, group, eps=self.eps, scale_by_std=self.scale_by_std)
