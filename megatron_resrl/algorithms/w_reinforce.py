"""Weighted-REINFORCE: wrong answers count fully, right ones a little (arXiv 2506.01347)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from megatron_resrl.algorithms.advantages import outcome_advantages
from megatron_resrl.algorithms.algorithm import Algorithm
from megatron_resrl.algorithms.options import require_not_negative


@dataclass(frozen=True)
class WReinforce(Algorithm):
    """A = lambda on correct responses, -1 on the others; no baseline, no shaped rewards."""

    name: ClassVar[str] = "w_reinforce"
    source: ClassVar[str] = "arXiv 2506.01347"

    positive_weight: float = 0.1
    """lambda; 0 is NSR, 1 is REINFORCE with rewards of +1 and -1."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_not_negative("positive_weight", self.positive_weight)

    def sample_advantages(self, rewards: Tensor, scores: Tensor, group: Tensor) -> Tensor:
        """lambda for correct responses, -1 for the others."""
        return outcome_advantages(scores, correct=float(self.positive_weight), incorrect=-1.0)
