"""PSR: positive sample reinforcement, learning from correct responses only (arXiv 2506.01347)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from megatron_resrl.algorithms.advantages import outcome_advantages
from megatron_resrl.algorithms.algorithm import Algorithm


@dataclass(frozen=True)
class PSR(Algorithm):
    """A = 1 on correct responses, 0 on the others; no baseline, no shaped rewards."""

    name: ClassVar[str] = "psr"
    source: ClassVar[str] = "arXiv 2506.01347"
    learns_from_rewards: ClassVar[bool] = False
    learns_from_incorrect: ClassVar[bool] = False

    def sample_advantages(self, rewards: Tensor, scores: Tensor, group: Tensor) -> Tensor:
        """1 for correct responses, 0 for the others."""
        return outcome_advantages(scores, correct=1.0, incorrect=0.0)
