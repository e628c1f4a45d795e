"""The clipped policy objective, one value per token."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from megatron_resrl.algorithms.losses import (
    LossInputs,
    LossOutputs,
    approximate_kl,
    mean_of,
)
from megatron_resrl.config.ranges import field_ranges, require_in_range
from megatron_resrl.config.schema import AlgorithmConfig

CLIP_RANGES = field_ranges(AlgorithmConfig)
"""Ranges of `clip_low`, `clip_high` and `dual_clip`, those of the section `algorithm`."""


@dataclass(frozen=True)
class PolicyLoss:
    """What `ppo_clip` returns; every tensor has the shape of the log-probabilities."""

    per_token: Tensor
    """Loss to be minimised, differentiable, not reduced."""
    ratio: Tensor
    """pi / pi_old, detached, not clipped."""
    clipped_low: Tensor
    """bool: A < 0 and the ratio is below 1 - clip_low, so the token has no gradient."""
    clipped_high: Tensor
    """bool: A > 0 and the ratio is above 1 + clip_high, so the token has no gradient."""
    dual_clipped: Tensor
    """bool: A < 0 and the ratio is above dual_clip, so the token has no gradient."""
    approx_kl: Tensor
    """k3 estimator of KL(old || new), >= 0, detached: its mean over tokens sampled from the old
    policy has the KL as expectation (J. Schulman, "Approximating KL divergence", 2020)."""


def ppo_clip(
    log_probs: Tensor,
    old_log_probs: Tensor,
    advantages: Tensor,
    *,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
    dual_clip: float | None = None,
) -> PolicyLoss:
    """-min(ratio A, clip(ratio, 1 - clip_low, 1 + clip_high) A), for A < 0 at most -dual_clip A.

    Sources: PPO, arXiv 1707.06347, equation 7; bounds of their own on both sides: DAPO,
    arXiv 2503.14476; dual clip: arXiv 1912.09729, equation 5.

    Args:
        log_probs: Any shape, float: log-probabilities of the sampled tokens under the policy.
        old_log_probs: Same shape: log-probabilities under the policy of the ratio's denominator.
            Constants.
        advantages: Same shape, cast to the dtype of the log-probabilities. Constants.
        clip_low: Between 0 and 1.
        clip_high: Above 0.
        dual_clip: Bound on the ratio of tokens with a negative advantage, above 1; None: off.

    Returns:
        The loss of each token and detached diagnostics.

    Raises:
        ValueError: Shapes differ (they would broadcast), or a clip is out of range.
    """
    clips = {"clip_low": clip_low, "clip_high": clip_high, "dual_clip": dual_clip}
    for name, value in clips.items():
        require_in_range(name, value, CLIP_RANGES[name])
    if not log_probs.shape == old_log_probs.shape == advantages.shape:
        raise ValueError(
            f"log_probs {list(log_probs.shape)}, old_log_probs {list(old_log_probs.shape)} and "
            f"advantages {list(advantages.shape)} must have the same shape"
        )
    log_ratio = log_probs - old_log_probs.detach()
    detached_log_ratio = log_ratio.detach()
    advantages = advantages.detach().to(log_ratio.dtype)
    low_limit, high_limit = math.log1p(-clip_low), math.log1p(clip_high)
    dual_limit = math.inf if dual_clip is None else math.log(dual_clip)
    negative = advantages < 0
    too_low = negative & (detached_log_ratio < low_limit)
    # A token without advantage is clipped too: if its ratio overflows, 0 * inf would be NaN.
    too_high = ~negative & (detached_log_ratio > high_limit)
    dual_clipped = negative & (detached_log_ratio > dual_limit)
    # Clipped in log space, before exp: a ratio that overflows has gradient 0 and not NaN.
    clipped_log_ratio = (
        log_ratio.masked_fill(too_low, low_limit)
        .masked_fill(too_high, high_limit)
        .masked_fill(dual_clipped, dual_limit)
    )
    return PolicyLoss(
        per_token=-advantages * clipped_log_ratio.exp(),
        ratio=detached_log_ratio.exp(),
        clipped_low=too_low,
        clipped_high=too_high & (advantages > 0),
        dual_clipped=dual_clipped,
        approx_kl=approximate_kl(detached_log_ratio),
    )


def clipped_loss(
    inputs: LossInputs,
    log_ratio: Tensor,
    *,
    clip_low: float,
    clip_high: float,
    dual_clip: float | None,
) -> LossOutputs:
    """The mini-batch's mean of `ppo_clip`.

    Args:
        inputs: Of a micro-batch.
        log_ratio: [n] log of the ratio of each token, differentiable.
        clip_low: As for `ppo_clip`.
        clip_high: As for `ppo_clip`.
        dual_clip: As for `ppo_clip`.

    Returns:
        The loss, and as means over tokens `clip_fraction/low`, `clip_fraction/high`,
        `clip_fraction/dual` and `approx_kl`.
    """
    clipped = ppo_clip(
        log_ratio,
        torch.zeros_like(log_ratio),
        inputs.advantages,
        clip_low=clip_low,
        clip_high=clip_high,
        dual_clip=dual_clip,
    )
    return LossOutputs(
        mean_of(inputs, clipped.per_token),
        token_means={
            "clip_fraction/low": clipped.clipped_low.sum(),
            "clip_fraction/high": clipped.clipped_high.sum(),
            "clip_fraction/dual": clipped.dual_clipped.sum(),
            "approx_kl": clipped.approx_kl.sum(),
        },
    )
