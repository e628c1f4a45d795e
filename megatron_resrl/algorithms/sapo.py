"""SAPO: a smooth gate on the ratio in place of the clip (arXiv 2511.20347)."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from megatron_resrl.algorithms.grpo import GRPO
from megatron_resrl.algorithms.losses import (
    LossInputs,
    LossOutputs,
    approximate_kl,
    mean_of,
)
from megatron_resrl.algorithms.options import require_above

_LARGEST_LOG_RATIO = 20.0
"""Beyond it the gate is flat in float64, too, for temperatures down to 1e-6; exp stays finite."""


@dataclass(frozen=True)
class SAPO(GRPO):
    """-A (4 / tau) sigmoid(tau (ratio - 1)); tau by the sign of the advantage.

    At a ratio of 1 the gradient is that of REINFORCE; it falls smoothly on both sides, faster with
    a larger tau.
    """

    name: ClassVar[str] = "sapo"
    source: ClassVar[str] = "arXiv 2511.20347; verl"
    published_with: ClassVar[Mapping[str, Any]] = {"algorithm.aggregation": "sequence_mean"}
    settings: ClassVar[Mapping[str, str]] = {}

    tau_positive: float = 1.0
    """tau of tokens with A > 0 (paper: 1.0)."""
    tau_negative: float = 1.05
    """tau of the others (paper: 1.05)."""
    clip_low: None = dataclasses.field(default=None, init=False)  # type: ignore[assignment]
    clip_high: None = dataclasses.field(default=None, init=False)  # type: ignore[assignment]
    dual_clip: None = dataclasses.field(default=None, init=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        require_above("tau_positive", self.tau_positive, 0)
        require_above("tau_negative", self.tau_negative, 0)

    def policy_loss(self, inputs: LossInputs) -> LossOutputs:
        """The loss, and as a mean over tokens `approx_kl`."""
        log_ratio = inputs.log_probs - inputs.old_log_probs
        detached = log_ratio.detach()
        tau = torch.full_like(detached, self.tau_negative)
        tau = tau.masked_fill(inputs.advantages > 0, self.tau_positive)
        gate = 4 / tau * torch.sigmoid(tau * torch.expm1(log_ratio.clamp(max=_LARGEST_LOG_RATIO)))
        return LossOutputs(
            mean_of(inputs, -gate * inputs.advantages),
            token_means={"approx_kl": approximate_kl(detached).sum()},
        )
