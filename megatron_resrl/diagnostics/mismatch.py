"""How far the engine's log-probabilities are from the trainer's, over all replicas."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from megatron_resrl.algorithms import (
    Correction,
    WeightSums,
    effective_sample_size,
    log_ratios,
    weight_sums,
)
from megatron_resrl.algorithms.losses import approximate_kl
from megatron_resrl.diagnostics.replicas import gather_from_replicas, speaks_for_replica
from megatron_resrl.rollout.batch import RolloutBatch


@dataclass(frozen=True)
class LogProbPair:
    """Log-probabilities of B responses of up to T tokens, side by side on the trainer's device."""

    trainer: torch.Tensor
    """[B, T] float."""
    engine: torch.Tensor
    """[B, T] float64; 0 outside of the mask."""
    loss_mask: torch.Tensor
    """[B, T] bool."""
    log_ratio: torch.Tensor
    """[B, T] float64, trainer - engine; 0 outside of the mask."""


def compare(batch: RolloutBatch, log_probs: torch.Tensor) -> LogProbPair:
    """Puts the engine's log-probabilities beside the trainer's, [B, T]."""
    loss_mask = batch.loss_mask.to(log_probs.device)
    engine = batch.rollout_log_probs.to(log_probs.device)
    return LogProbPair(log_probs, engine, loss_mask, log_ratios(log_probs, engine, loss_mask))


@dataclass(frozen=True)
class Mismatch:
    """Sums over the generated tokens of one replica."""

    tokens: int
    log_prob: float
    """Sum of |log p_engine - log p_trainer|."""
    log_prob_max: float
    probability: float
    """Sum of |p_engine - p_trainer|."""
    probability_max: float
    kl: float
    """Sum of the k3 estimator of KL(engine || trainer)."""
    token_weights: WeightSums
    """Of the ratios trainer / engine of tokens, before any correction."""
    sequence_weights: WeightSums
    """Of their products over responses."""
    importance_weights: float = 0.0
    """Sum of what the correction multiplies the loss of tokens by."""
    clipped: int = 0
    """Tokens whose ratio was above the cap or outside of the band."""


def measure_mismatch(pair: LogProbPair, correction: Correction | None = None) -> Mismatch:
    """Sums the differences and, if there is one, what the correction made of them."""
    mask = pair.loss_mask
    log_ratio = pair.log_ratio[mask]
    if not len(log_ratio):
        none = WeightSums(0, float("-inf"), float("-inf"))
        return Mismatch(0, 0.0, 0.0, 0.0, 0.0, 0.0, none, none)
    log_prob = log_ratio.abs()
    probability = (pair.trainer[mask].double().exp() - pair.engine[mask].exp()).abs()
    return Mismatch(
        tokens=len(log_ratio),
        log_prob=float(log_prob.sum()),
        log_prob_max=float(log_prob.max()),
        probability=float(probability.sum()),
        probability_max=float(probability.max()),
        kl=float(approximate_kl(log_ratio).sum()),
        token_weights=weight_sums(log_ratio),
        sequence_weights=weight_sums(pair.log_ratio.sum(1)[mask.any(1)]),
        importance_weights=float(correction.factors[mask].double().sum()) if correction else 0.0,
        clipped=int(correction.clipped.sum()) if correction else 0,
    )


def gather_mismatch(pair: LogProbPair, correction: Correction | None) -> dict[str, float]:
    """Averages over the generated tokens of all replicas, the same on every rank. Collective.

    Args:
        pair: Of this replica's responses; meaningful on the last stage.
        correction: Of their loss; None: there is none.
    """
    replicas = gather_from_replicas(
        measure_mismatch(pair, correction) if speaks_for_replica() else None
    )
    tokens = sum(each.tokens for each in replicas)
    metrics = {
        "mismatch/log_prob_mean": sum(each.log_prob for each in replicas) / tokens,
        "mismatch/log_prob_max": max(each.log_prob_max for each in replicas),
        "mismatch/probability_mean": sum(each.probability for each in replicas) / tokens,
        "mismatch/probability_max": max(each.probability_max for each in replicas),
        "mismatch/kl": sum(each.kl for each in replicas) / tokens,
        "mismatch/ess": effective_sample_size([each.token_weights for each in replicas]),
        "mismatch/ess_sequence": effective_sample_size(
            [each.sequence_weights for each in replicas]
        ),
    }
    if correction is not None:
        total = sum(each.importance_weights for each in replicas)
        metrics["correction/factor_mean"] = total / tokens
        metrics["correction/clipped"] = sum(each.clipped for each in replicas) / tokens
    return metrics
