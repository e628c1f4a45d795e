"""LENS: confident mistakes are punished more, also in groups without a correct response."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from megatron_resrl.algorithms.advantages import group_normalised, is_correct
from megatron_resrl.algorithms.grpo import GRPO
from megatron_resrl.algorithms.options import require_not_negative


@dataclass(frozen=True)
class LENS(GRPO):
    """GRPO on r - [incorrect] p / (D - p) / G, p the geometric mean of the tokens' probabilities.

    D is the larger of 2 max p of the group and G / sum of 1 / p over its correct responses. A group
    without a correct response has alpha (r - mean). The probabilities are the engine's, as the
    policy before the step gave them; D takes the geometric mean in all places, where the paper
    leaves open which it takes in its estimate by importance sampling. Groups without a correct
    response have a loss, so that `rollout.dynamic_sampling` would take away what the method is for.
    """

    name: ClassVar[str] = "lens"
    source: ClassVar[str] = "arXiv 2510.08696"

    alpha: float = 0.25
    """Factor on the advantages of groups without a correct response (paper: 0.25)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_not_negative("alpha", self.alpha)

    def calibrated_rewards(
        self, rewards: Tensor, scores: Tensor, group: Tensor, mean_log_probs: Tensor
    ) -> Tensor:
        """Rewards less what confidence in a mistake costs: at most 1 / G."""
        correct_B = is_correct(scores)
        calibrated_B = rewards.double().clone()
        for number in group.unique():
            own = group == number
            # Relative to the most likely response: p / (D - p) has no scale.
            p = (mean_log_probs[own] - mean_log_probs[own].max()).double().exp()
            difficulty = 2.0
            if correct_B[own].any():
                difficulty = max(difficulty, float(len(p) / (correct_B[own] / p).sum()))
            penalty = p / (difficulty - p) / len(p)
            calibrated_B[own] -= penalty.masked_fill(correct_B[own], 0.0)
        return calibrated_B

    def sample_advantages(self, rewards: Tensor, scores: Tensor, group: Tensor) -> Tensor:
        """A of each response; without a correct one in the group, alpha (r - mean)."""
        normalised_B = super().sample_advantages(rewards, scores, group)
        centred_B = group_normalised(rewards, group, scale_by_std=False)
        has_correct_B = torch.isin(group, group[is_correct(scores)])
        return torch.where(has_correct_B, normalised_B, self.alpha * centred_B)
