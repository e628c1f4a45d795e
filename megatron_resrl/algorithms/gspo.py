"""GSPO: one ratio for a whole response (arXiv 2507.18071)."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from megatron_resrl.algorithms.grpo import GRPO
from megatron_resrl.algorithms.losses import LossInputs, LossOutputs
from megatron_resrl.algorithms.options import require_within
from megatron_resrl.algorithms.policy_loss import CLIP_RANGES, clipped_loss


@dataclass(frozen=True)
class GSPO(GRPO):
    """The clipped objective of s_i = exp(mean over the tokens of log pi - log pi_old), equation 5.

    The paper averages over responses: `algorithm.aggregation: sequence_mean`.
    """

    name: ClassVar[str] = "gspo"
    source: ClassVar[str] = "arXiv 2507.18071"
    published_with: ClassVar[Mapping[str, Any]] = {"algorithm.aggregation": "sequence_mean"}
    settings: ClassVar[Mapping[str, str]] = {}

    clip_low: float = dataclasses.field(default=3e-4, kw_only=True)
    """The smallest ratio is 1 - clip_low (paper: 3e-4)."""
    clip_high: float = dataclasses.field(default=4e-4, kw_only=True)
    """The largest ratio is 1 + clip_high (paper: 4e-4)."""
    dual_clip: None = dataclasses.field(default=None, init=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        require_within("clip_low", self.clip_low, CLIP_RANGES["clip_low"])
        require_within("clip_high", self.clip_high, CLIP_RANGES["clip_high"])

    def policy_loss(self, inputs: LossInputs) -> LossOutputs:
        """The loss and the metrics of the clipped objective; a token counts as its response."""
        log_ratio = inputs.sequence_mean(inputs.log_probs - inputs.old_log_probs)
        return clipped_loss(
            inputs,
            log_ratio,
            clip_low=self.clip_low,
            clip_high=self.clip_high,
            dual_clip=None,
        )
