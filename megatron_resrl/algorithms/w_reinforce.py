"""Weighted-REINFORCE: wrong answers count fully, right ones a little (arXiv 2506.01347)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from megatron_resrl.algorithms.advantages import outcome_advantages
from megatron_resrl.algorithms.algorithm import Algorithm, weighted_advantages


@dataclass(frozen=True)
class WReinforce(Algorithm):
    """A = lambda on correct responses, -1 on the others; no baseline, no shaped rewards."""

    name: ClassVar[str] = "w_reinforce"
    source: ClassVar[str] = "arXiv 2506.01347"
    learns_from_rewards: ClassVar[bool] = False
    weighting_settings: ClassVar[Mapping[str, str]] = {"positives": "resrl.positives"}

    positive_weight: float = 0.1
    """lambda; 0 is NSR, 1 is REINFORCE with rewards of +1 and -1."""

    def sample_advantages(self, rewards: Tensor, scores: Tensor, group: Tensor) -> Tensor:
        """lambda for correct responses, -1 for the others."""
        return outcome_advantages(scores, correct=float(self.positive_weight), incorrect=-1.0)

    def token_advantages(
        self, advantages: Tensor, positive: Tensor, token_weights: Tensor
    ) -> Tensor:
        """w_t A; positives have lambda already."""
        return weighted_advantages(advantages, positive, token_weights, positive_weight=1.0)
