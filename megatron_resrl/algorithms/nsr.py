"""NSR: negative sample reinforcement, learning from wrong answers only (arXiv 2506.01347)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from megatron_resrl.algorithms.advantages import outcome_advantages
from megatron_resrl.algorithms.algorithm import Algorithm


@dataclass(frozen=True)
class NSR(Algorithm):
    """A = 0 on correct responses, -1 on the others; no baseline, shaped rewards play no part."""

    name: ClassVar[str] = "nsr"
    source: ClassVar[str] = "arXiv 2506.01347"
    learns_from_rewards: ClassVar[bool] = False

    def sample_advantages(self, rewards: Tensor, scores: Tensor, group: Tensor) -> Tensor:
        """0 for correct responses, -1 for the others."""
        return outcome_advantages(scores, correct=0.0, incorrect=-1.0)
