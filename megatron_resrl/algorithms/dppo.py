"""DPPO: tokens are masked by how far their probability moved, not by a ratio (arXiv 2602.04879)."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, get_args

import torch
from torch import Tensor

from megatron_resrl.algorithms.grpo import GRPO
from megatron_resrl.algorithms.losses import (
    LossInputs,
    LossOutputs,
    approximate_kl,
    mean_of,
)
from megatron_resrl.algorithms.options import require_above, require_choice

Divergence = Literal["tv", "kl"]
Anchor = Literal["trainer", "engine"]
_DEFAULT_LIMITS: Mapping[str, float] = {"tv": 0.2, "kl": 0.05}


@dataclass(frozen=True)
class DPPO(GRPO):
    """-[D within its limit or shrinking] sg(min(ratio, cap)) A log pi.

    D is the divergence of two distributions over {the generated token, any other}: of the anchor
    and of the policy that is being updated. A token has no gradient where the update would lead it
    further away: it is reinforced and has become more likely than the anchor by too much, or
    punished and less likely. Rare tokens move far in ratio and little in D; PPO clips them first.
    """

    name: ClassVar[str] = "dppo"
    source: ClassVar[str] = "arXiv 2602.04879; verl"
    published_with: ClassVar[Mapping[str, Any]] = {"algorithm.aggregation": "token_mean"}
    settings: ClassVar[Mapping[str, str]] = {}

    divergence: Divergence = "tv"
    """`tv`: total variation |p - p_anchor|; `kl`: KL(anchor || policy) in nats."""
    clip_low: float | None = dataclasses.field(default=None, kw_only=True)  # type: ignore[assignment]
    """Largest divergence of punished tokens; default: 0.2 with tv, 0.05 with kl."""
    clip_high: float | None = dataclasses.field(default=None, kw_only=True)  # type: ignore[assignment]
    """The same of reinforced tokens."""
    ratio_cap: float = 20.0
    """The largest ratio (verl: 20)."""
    anchor: Anchor = "trainer"
    """The distribution that ratio and divergence are taken from. `trainer`: the policy before the
    step, as the trainer computes it; `engine`: as the engine sampled from it, which is the paper's
    and corrects a mismatch of both, so that `correction.method` has to be none."""
    dual_clip: None = dataclasses.field(default=None, init=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        require_choice("divergence", self.divergence, get_args(Divergence))
        require_choice("anchor", self.anchor, get_args(Anchor))
        for option in ("clip_low", "clip_high"):
            if getattr(self, option) is not None:
                require_above(option, getattr(self, option), 0)
        require_above("ratio_cap", self.ratio_cap, 1)

    @property
    def corrects_mismatch(self) -> bool:
        """With the engine as anchor."""
        return self.anchor == "engine"

    def policy_loss(self, inputs: LossInputs) -> LossOutputs:
        """The loss, and as means over tokens `clip_fraction/low`, `.../high` and `approx_kl`."""
        anchor = inputs.old_log_probs if self.anchor == "trainer" else inputs.rollout_log_probs
        log_probs = inputs.log_probs.detach()
        log_ratio = log_probs - anchor
        default = _DEFAULT_LIMITS[self.divergence]
        low = default if self.clip_low is None else self.clip_low
        high = default if self.clip_high is None else self.clip_high
        apart = _DIVERGENCES[self.divergence](anchor, log_probs)
        too_low = (inputs.advantages < 0) & (log_ratio < 0) & (apart > low)
        too_high = (inputs.advantages > 0) & (log_ratio > 0) & (apart > high)
        # Capped before exp: no ratio overflows.
        weights = log_ratio.clamp(max=math.log(self.ratio_cap)).exp()
        weights = weights.masked_fill(too_low | too_high, 0.0)
        return LossOutputs(
            mean_of(inputs, -weights * inputs.advantages * inputs.log_probs),
            token_means={
                "clip_fraction/low": too_low.sum(),
                "clip_fraction/high": too_high.sum(),
                "approx_kl": approximate_kl(log_ratio).sum(),
            },
        )


def _total_variation(anchor: Tensor, log_probs: Tensor) -> Tensor:
    return (log_probs.exp() - anchor.exp()).abs()


def _binary_kl(anchor: Tensor, log_probs: Tensor) -> Tensor:
    """[n] p_a log(p_a / p) + (1 - p_a) log((1 - p_a) / (1 - p)) of [n] log-probabilities."""
    # float64: two terms of opposite sign nearly cancel. Kept finite where p rounds to 1.
    anchor, log_probs = anchor.double(), log_probs.double()
    rest_anchor, rest = ((-torch.expm1(each)).clamp(min=1e-30) for each in (anchor, log_probs))
    return anchor.exp() * (anchor - log_probs) + rest_anchor * (rest_anchor / rest).log()


_DIVERGENCES = {"tv": _total_variation, "kl": _binary_kl}
