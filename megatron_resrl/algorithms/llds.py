"""LLDS: GRPO that keeps the likelihood of good responses from falling (arXiv 2512.04220)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from megatron_resrl.algorithms.grpo import GRPO
from megatron_resrl.algorithms.losses import LossInputs, LossOutputs
from megatron_resrl.algorithms.options import require_not_negative


@dataclass(frozen=True)
class LLDS(GRPO):
    """GRPO plus lambda x the mean over tokens of [A >= 0] [gate] max(0, log pi_old - log pi).

    The gate is open for responses whose log-likelihood fell: sum (log pi_old - log pi) > 0 over the
    tokens. That is the paper's response-level gate, as in its code; its action-level gate, of each
    turn by itself, is the same where a response is one turn. The paper averages over all tokens of
    the mini-batch: `algorithm.aggregation: token_mean`.

    The likelihood can only have fallen after an update: the term does nothing with
    `algorithm.updates_per_step: 1`.
    """

    name: ClassVar[str] = "llds"
    source: ClassVar[str] = "arXiv 2512.04220"
    published_with: ClassVar[Mapping[str, Any]] = {"algorithm.aggregation": "token_mean"}

    likelihood_coefficient: float = 0.1
    """lambda (paper: 0.1)."""
    likelihood_tolerance: float = 1e-3
    """Nats up to which a token counts as unchanged, so that rounding between two passes over the
    same weights has no gradient; 0 is the paper's."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_not_negative("likelihood_coefficient", self.likelihood_coefficient)
        require_not_negative("likelihood_tolerance", self.likelihood_tolerance)

    def has_loss(self, advantages: Tensor, positive: Tensor) -> Tensor:
        """All responses: those with a positive or no advantage are kept likely."""
        return torch.ones_like(positive)

    def policy_loss(self, inputs: LossInputs) -> LossOutputs:
        """The clipped objective and `likelihood_term`."""
        return super().policy_loss(inputs) + self.likelihood_term(inputs)

    def likelihood_term(self, inputs: LossInputs) -> LossOutputs:
        """lambda x the mean fall, and its metrics.

        Returns:
            The term; as a mean over updates `likelihood/term`, as a mean over tokens
            `likelihood/penalised_fraction`.
        """
        fall = inputs.old_log_probs - inputs.log_probs
        gate = inputs.sequence_sum(fall.detach()) > 0
        penalised = gate & (inputs.advantages >= 0) & (fall.detach() > self.likelihood_tolerance)
        mean_fall = (inputs.coefficients * fall.masked_fill(~penalised, 0.0)).sum()
        loss = self.likelihood_coefficient * mean_fall
        return LossOutputs(
            loss,
            token_means={"likelihood/penalised_fraction": penalised.sum()},
            update_means={"likelihood/term": loss.detach()},
        )
