"""CISPO: the importance weight is clipped, not the token (MiniMax-M1, arXiv 2506.13585)."""

from __future__ import annotations

import dataclasses
import math
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
from megatron_resrl.algorithms.options import require_above, require_between


@dataclass(frozen=True)
class CISPO(GRPO):
    """-sg(clip(ratio, 1 - clip_low, 1 + clip_high)) A log pi, equations 4 and 5.

    Every token keeps a gradient, also those far from the old policy. The paper averages over
    tokens: `algorithm.aggregation: token_mean`.
    """

    name: ClassVar[str] = "cispo"
    source: ClassVar[str] = "arXiv 2506.13585"
    published_with: ClassVar[Mapping[str, Any]] = {"algorithm.aggregation": "token_mean"}
    settings: ClassVar[Mapping[str, str]] = {}

    clip_low: float = dataclasses.field(default=1.0, kw_only=True)
    """The smallest weight is 1 - clip_low; 1, as in the paper: no lower bound."""
    clip_high: float = dataclasses.field(default=4.0, kw_only=True)
    """The largest weight is 1 + clip_high; 5 is ScaleRL's (arXiv 2510.13786)."""
    dual_clip: None = dataclasses.field(default=None, init=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        require_between("clip_low", self.clip_low, 0, 1)
        require_above("clip_high", self.clip_high, 0)

    def policy_loss(self, inputs: LossInputs) -> LossOutputs:
        """The loss, and as means over tokens `clip_fraction/low`, `.../high` and `approx_kl`."""
        log_ratio = inputs.log_probs.detach() - inputs.old_log_probs
        low = math.log1p(-self.clip_low) if self.clip_low < 1 else -math.inf
        high = math.log1p(self.clip_high)
        # Clipped before exp: no ratio overflows.
        weights = log_ratio.clamp(low, high).exp()
        return LossOutputs(
            mean_of(inputs, -weights * inputs.advantages * inputs.log_probs),
            token_means={
                "clip_fraction/low": (log_ratio < low).sum(),
                "clip_fraction/high": (log_ratio > high).sum(),
                "approx_kl": approximate_kl(log_ratio).sum(),
            },
        )
