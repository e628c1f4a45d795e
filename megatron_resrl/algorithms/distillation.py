"""On-policy distillation: a teacher judges every token that the policy has drawn."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from megatron_resrl.algorithms.algorithm import Algorithm
from megatron_resrl.algorithms.losses import LossInputs, LossOutputs

TEACHER = "teacher_log_probs"
"""Name of the teacher's log-probabilities in `LossInputs.extra`."""


@dataclass(frozen=True)
class Distillation(Algorithm):
    """A = log pi_teacher - log pi_old of each token, no baseline; rewards play no part.

    The policy gradient of the reverse KL divergence KL(pi, pi_teacher) of single tokens: what a
    token does to later ones is left out, as by a discount factor of 0. pi_old is the policy before
    the step. Several updates per step are clipped like PPO's.
    """

    name: ClassVar[str] = "distillation"
    source: ClassVar[str] = "Lu and Thinking Machines Lab, On-Policy Distillation, 2025"
    published_with: ClassVar[Mapping[str, Any]] = {"rollout.temperature": 1.0}
    learns_from_rewards: ClassVar[bool] = False
    needs_teacher: ClassVar[bool] = True

    def sample_advantages(self, rewards: Tensor, scores: Tensor, group: Tensor) -> Tensor:
        """0: there is none of the whole response."""
        return torch.zeros(len(rewards), dtype=torch.float64)

    def has_loss(self, advantages: Tensor, positive: Tensor) -> Tensor:
        """All responses."""
        return torch.ones_like(positive)

    def policy_loss(self, inputs: LossInputs) -> LossOutputs:
        """The clipped objective with the tokens' own advantages.

        Returns:
            The loss; as a mean over tokens also `distillation/reverse_kl`.
        """
        behind_n = inputs.extra[TEACHER] - inputs.old_log_probs
        advantages = self.token_advantages(behind_n, inputs.positive, inputs.token_weights)
        outputs = super().policy_loss(dataclasses.replace(inputs, advantages=advantages))
        return outputs + LossOutputs(
            torch.zeros_like(outputs.loss),
            token_means={"distillation/reverse_kl": -behind_n.sum()},
        )
