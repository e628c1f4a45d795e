"""REINFORCE++ and its form with a group baseline: normalised over the step (arXiv 2501.03262).

The papers' KL to a reference is `algorithm.kl_coefficient`, with `algorithm.kl_in: reward` in the
one and `loss` in the other. In the reward it is that of the whole response; the paper takes it off
the rewards of tokens, so that a token's advantage has the KL of the tokens from it on.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from megatron_resrl.algorithms.advantages import (
    finite_vector,
    group_normalised,
    whitened_over_tokens,
)
from megatron_resrl.algorithms.algorithm import Algorithm
from megatron_resrl.algorithms.options import require_above


@dataclass(frozen=True)
class ReinforcePlusPlus(Algorithm):
    """A = (r - mean) / std over all generated tokens of the step; groups play no part."""

    name: ClassVar[str] = "reinforce_pp"
    source: ClassVar[str] = "arXiv 2501.03262; OpenRLHF"

    min_variance: float = 1e-8
    """Smaller variances count as this (OpenRLHF)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_above("min_variance", self.min_variance, 0)

    def sample_advantages(self, rewards: Tensor, scores: Tensor, group: Tensor) -> Tensor:
        """The rewards."""
        return finite_vector("rewards", rewards)

    def relate_over_step(self, advantages: Tensor, tokens: Tensor) -> Tensor:
        """A of each response; exactly 0 where all are equal."""
        return whitened_over_tokens(advantages, tokens, min_variance=self.min_variance)


@dataclass(frozen=True)
class ReinforcePlusPlusBaseline(ReinforcePlusPlus):
    """First r - mean of the group, then (A - mean) / std over all generated tokens of the step.

    A group whose rewards are equal may have a small advantage: minus the mean over the tokens.
    """

    name: ClassVar[str] = "reinforce_pp_baseline"

    def sample_advantages(self, rewards: Tensor, scores: Tensor, group: Tensor) -> Tensor:
        """r - mean of the group."""
        return group_normalised(rewards, group, scale_by_std=False)
