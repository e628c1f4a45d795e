"""Rejection fine-tuning: supervised learning on the policy's own correct responses."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from megatron_resrl.algorithms.losses import (
    LossInputs,
    LossOutputs,
    approximate_kl,
    mean_of,
)
from megatron_resrl.algorithms.psr import PSR


@dataclass(frozen=True)
class RFT(PSR):
    """-log pi, averaged over correct responses alone: no ratio, no clip, no advantage.

    Each step generates anew, as RAFT does (arXiv 2304.06767); RFT (arXiv 2308.01825) generates once
    and removes repeated responses, which is not done here. The denominators of
    `algorithm.aggregation` count correct responses only, as in supervised fine-tuning, whose loss
    `token_mean` gives.
    """

    name: ClassVar[str] = "rft"
    source: ClassVar[str] = "arXiv 2308.01825, 2304.06767"
    published_with: ClassVar[Mapping[str, Any]] = {"algorithm.aggregation": "token_mean"}
    settings: ClassVar[Mapping[str, str]] = {}

    clip_low: None = dataclasses.field(default=None, init=False)  # type: ignore[assignment]
    clip_high: None = dataclasses.field(default=None, init=False)  # type: ignore[assignment]
    dual_clip: None = dataclasses.field(default=None, init=False)

    def in_denominator(self, positive: Tensor) -> Tensor:
        """The correct responses."""
        return positive

    def policy_loss(self, inputs: LossInputs) -> LossOutputs:
        """The cross-entropy, and as a mean over tokens `approx_kl`."""
        log_ratio = inputs.log_probs.detach() - inputs.old_log_probs
        return LossOutputs(
            mean_of(inputs, -inputs.advantages * inputs.log_probs),
            token_means={"approx_kl": approximate_kl(log_ratio).sum()},
        )
