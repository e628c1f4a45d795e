"""Importance weights for responses drawn from another distribution than the trainer's.

Shapes: B responses of up to T tokens.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

CorrectionMethod = Literal["token_tis", "sequence_tis", "icepop"]


@dataclass(frozen=True)
class Correction:
    """What the loss of every token is multiplied by; constants."""

    factors: Tensor
    """[B, T] fp32, at least 0; 1 for tokens that are masked out."""
    clipped: Tensor
    """[B, T] bool: the ratio was above the cap or outside of the band; False if masked out."""


def log_ratios(log_probs: Tensor, engine_log_probs: Tensor, response_mask: Tensor) -> Tensor:
    """log pi_trainer - log pi_engine of the sampled tokens.

    The trainer's log-probabilities are those of its whole distribution. If the engine draws from a
    truncated one (top-p, top-k) and reports what it drew from, the ratio holds the mass that the
    truncation kept.

    Args:
        log_probs: [B, T] float, of the trainer, with the weights before the step's first update.
        engine_log_probs: [B, T] float, of the distribution that the tokens were drawn from.
        response_mask: [B, T] bool, tokens that the policy drew; the rest may hold anything.

    Returns:
        [B, T] float64, detached; 0 where masked out.

    Raises:
        ValueError: The shapes differ, or the mask is not bool.
    """
    shapes = {tuple(each.shape) for each in (log_probs, engine_log_probs, response_mask)}
    if len(shapes) != 1 or log_probs.dim() != 2:
        raise ValueError(
            f"log_probs, engine_log_probs and response_mask have shapes {list(log_probs.shape)}, "
            f"{list(engine_log_probs.shape)} and {list(response_mask.shape)}; [B, T] for all is "
            "right"
        )
    if response_mask.dtype != torch.bool:
        raise ValueError(f"response_mask has dtype {response_mask.dtype}; bool is right")
    difference = log_probs.detach().double() - engine_log_probs.detach().double()
    return difference.masked_fill(~response_mask, 0.0)


def correction_factors(
    log_ratio: Tensor,
    response_mask: Tensor,
    *,
    method: CorrectionMethod,
    cap: float,
    band: tuple[float, float],
) -> Correction:
    """The factors of a method.

    - `token_tis`: min(ratio, cap) of each token (truncated importance sampling: Yao et al., "Your
      Efficient RL Framework Secretly Brings You Off-Policy RL Training", 2025).
    - `sequence_tis`: min(product of the ratios of the response's tokens, cap), for all of them.
    - `icepop`: the token's ratio within the band, bounds included, otherwise 0 (IcePop,
      arXiv 2510.18855).

    A ratio that is not a number stays one, so that the loss shows it.

    Args:
        log_ratio: [B, T] float64, from `log_ratios`.
        response_mask: [B, T] bool, tokens that the policy drew.
        method: One of the three.
        cap: Largest factor of truncated importance sampling, above 0.
        band: Smallest and largest ratio that icepop keeps.

    Raises:
        ValueError: Unknown method.
    """
    if method == "token_tis":
        factors, clipped = _capped(log_ratio, cap)
    elif method == "sequence_tis":
        factors, clipped = _capped(log_ratio.sum(1, keepdim=True).expand_as(log_ratio), cap)
    elif method == "icepop":
        low, high = band
        ratio = log_ratio.exp()
        clipped = (ratio < low) | (ratio > high)
        factors = ratio.masked_fill(clipped, 0.0)
    else:
        known = ", ".join(get_args(CorrectionMethod))
        raise ValueError(f"method is {method!r}; one of {known} is right")
    return Correction(
        factors.masked_fill(~response_mask, 1.0).float(),
        clipped & response_mask,
    )


def _capped(log_ratio: Tensor, cap: float) -> tuple[Tensor, Tensor]:
    """min(ratio, cap), which no ratio overflows, and whether it was above."""
    limit = math.log(cap)
    return log_ratio.clamp(max=limit).exp(), log_ratio > limit


@dataclass(frozen=True)
class WeightSums:
    """Sums of importance weights in log space, where products over long responses have room."""

    count: int
    log_sum: float
    """log sum w."""
    log_sum_of_squares: float
    """log sum w^2."""


def weight_sums(log_weights: Tensor) -> WeightSums:
    """Sums of n weights, additive over shares in `effective_sample_size`.

    Args:
        log_weights: [n] float64; n may be 0.
    """
    return WeightSums(
        len(log_weights),
        float(log_weights.logsumexp(0)),
        float((2 * log_weights).logsumexp(0)),
    )


def effective_sample_size(shares: Sequence[WeightSums]) -> float:
    """(sum w)^2 / (n sum w^2): 1 if all weights are equal, 1 / n if one outweighs the rest.

    Source: Kong, Liu and Wong, "Sequential Imputations and Bayesian Missing Data Problems", 1994.

    Args:
        shares: Sums of the parts of one set of n weights.

    Returns:
        Share of the n samples, of which not all weights may be 0; NaN for none.
    """
    count = sum(share.count for share in shares)
    if count == 0:
        return math.nan
    log_sum, log_squares = (
        float(torch.tensor(values, dtype=torch.float64).logsumexp(0))
        for values in (
            [share.log_sum for share in shares],
            [share.log_sum_of_squares for share in shares],
        )
    )
    return math.exp(2 * log_sum - log_squares - math.log(count))
