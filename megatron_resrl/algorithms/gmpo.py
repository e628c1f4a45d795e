"""GMPO: the geometric mean of a response's clipped ratios (arXiv 2507.20673)."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from megatron_resrl.algorithms.grpo import GRPO
from megatron_resrl.algorithms.losses import (
    LossInputs,
    LossOutputs,
    approximate_kl,
    mean_of,
)
from megatron_resrl.algorithms.options import require_above


@dataclass(frozen=True)
class GMPO(GRPO):
    """-A exp(mean over the tokens of the clipped log ratio), equation 4.

    Every token is clipped by itself, as PPO does: with A > 0 its log ratio counts as at most
    clip_high, with A < 0 as at least -clip_low. Where token weights give the tokens of a response
    advantages of their own, the sign of their mean decides, and each multiplies the same ratio.
    """

    name: ClassVar[str] = "gmpo"
    source: ClassVar[str] = "arXiv 2507.20673; its code"
    published_with: ClassVar[Mapping[str, Any]] = {"algorithm.aggregation": "sequence_mean"}
    settings: ClassVar[Mapping[str, str]] = {}

    clip_low: float = dataclasses.field(default=0.4, kw_only=True)
    """The smallest ratio of a token is exp(-clip_low) (paper: 0.4)."""
    clip_high: float = dataclasses.field(default=0.4, kw_only=True)
    """The largest ratio of a token is exp(clip_high) (paper: 0.4)."""
    dual_clip: None = dataclasses.field(default=None, init=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        require_above("clip_low", self.clip_low, 0)
        require_above("clip_high", self.clip_high, 0)

    def policy_loss(self, inputs: LossInputs) -> LossOutputs:
        """The loss, and as means over tokens `clip_fraction/low`, `.../high` and `approx_kl`."""
        log_ratio = inputs.log_probs - inputs.old_log_probs
        detached = log_ratio.detach()
        of_response = inputs.sequence_mean(inputs.advantages)
        too_low = (of_response < 0) & (detached < -self.clip_low)
        too_high = (of_response > 0) & (detached > self.clip_high)
        clipped = log_ratio.masked_fill(too_low, -self.clip_low)
        clipped = clipped.masked_fill(too_high, self.clip_high)
        ratio = inputs.sequence_mean(clipped).exp()
        return LossOutputs(
            mean_of(inputs, -inputs.advantages * ratio),
            token_means={
                "clip_fraction/low": too_low.sum(),
                "clip_fraction/high": too_high.sum(),
                "approx_kl": approximate_kl(detached).sum(),
            },
        )
