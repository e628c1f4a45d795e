"""What keeps the policy near a reference policy: an estimate of KL(policy, reference)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from megatron_resrl.algorithms.losses import LossInputs, LossOutputs, approximate_kl

REFERENCE = "reference_log_probs"
"""Name of the reference's log-probabilities in `LossInputs.extra`."""

Estimator = Literal["k1", "k2", "k3"]


def estimated_kl(log_ratio: Tensor, estimator: Estimator) -> Tensor:
    """An estimate of KL(policy, reference) from each token that the policy drew.

    k1 = x, k2 = x^2 / 2, k3 = exp(-x) - 1 + x of x = log pi - log pi_ref (J. Schulman,
    "Approximating KL divergence", 2020). k1 and k3 have the KL divergence as expectation; k2 is
    biased, and at least 0 like k3. As a loss over tokens of the policy itself only k2 has the
    divergence's gradient as expectation: that of k1 is grad log pi, whose expectation is 0, that of
    k3 (1 - pi_ref / pi) grad log pi, the gradient of KL(reference, policy).

    Args:
        log_ratio: Any shape: x, differentiable or not.
        estimator: One of the three.
    """
    if estimator == "k1":
        return log_ratio
    if estimator == "k2":
        return log_ratio.square() / 2
    return approximate_kl(-log_ratio)


@dataclass(frozen=True)
class KlPenalty:
    """`algorithm.kl_coefficient` above 0, and what goes with it."""

    coefficient: float
    """`algorithm.kl_coefficient`."""
    estimator: Estimator
    """`algorithm.kl_estimator`, with `auto` resolved."""
    place: Literal["loss", "reward"]
    """`algorithm.kl_in`."""

    def loss(self, inputs: LossInputs) -> LossOutputs:
        """coefficient x the estimate, averaged over the mini-batch as the rest of the loss.

        Like the entropy bonus it is not importance-weighted: after the first update of a step the
        tokens are still those of the policy before the step, as in verl and TRL.

        Args:
            inputs: With the stream `reference_log_probs`.
        """
        kl_n = estimated_kl(inputs.log_probs - inputs.extra[REFERENCE], self.estimator)
        loss = self.coefficient * (inputs.coefficients * kl_n).sum()
        return LossOutputs(loss, update_means={"reference/loss": loss.detach()})

    def of_responses(self, log_probs: Tensor, reference: Tensor, mask: Tensor) -> Tensor:
        """What the reward of each response loses: coefficient x the sum over its tokens.

        Args:
            log_probs: [B, T] under the policy that drew the tokens.
            reference: [B, T] under the reference.
            mask: [B, T] bool, the generated tokens.

        Returns:
            [B] float64.
        """
        kl_BT = estimated_kl(log_probs.double() - reference.double(), self.estimator)
        return self.coefficient * kl_BT.masked_fill(~mask, 0.0).sum(1)
