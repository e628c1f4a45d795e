"""GSPO-token: GSPO's ratio with an advantage of its own for each token (arXiv 2507.18071)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from megatron_resrl.algorithms.gspo import GSPO
from megatron_resrl.algorithms.losses import LossInputs, LossOutputs
from megatron_resrl.algorithms.policy_loss import clipped_loss


@dataclass(frozen=True)
class GSPOToken(GSPO):
    """The clipped objective of s_it = sg(s_i) pi_t / sg(pi_t), equations 13 and 14.

    Its value is GSPO's, and so is its gradient where all tokens of a response have the same
    advantage. Token weights act on each token here, in GSPO by their mean over the response.
    """

    name: ClassVar[str] = "gspo_token"

    def policy_loss(self, inputs: LossInputs) -> LossOutputs:
        """The loss and the metrics of the clipped objective; a token counts as its response."""
        own = inputs.log_probs - inputs.log_probs.detach()
        of_response = inputs.sequence_mean(inputs.log_probs.detach() - inputs.old_log_probs)
        return clipped_loss(
            inputs,
            of_response + own,
            clip_low=self.clip_low,
            clip_high=self.clip_high,
            dual_clip=None,
        )
