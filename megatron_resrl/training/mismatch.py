"""How far the engine's view of the drawn tokens is from the trainer's, over all replicas."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from megatron.core import parallel_state

from megatron_resrl.algorithms import (
    Correction,
    WeightSums,
    effective_sample_size,
    log_ratios,
    weight_sums,
)
from megatron_resrl.platform.distributed import gather_objects
from megatron_resrl.policy.batches import drawn_mask
from megatron_resrl.policy.schedule import is_last_stage
from megatron_resrl.rollout.collect import Sample


@dataclass(frozen=True)
class Views:
    """Log-probabilities of B responses of up to T tokens, side by side on the trainer's device."""

    trainer: torch.Tensor
    """[B, T] float."""
    engine: torch.Tensor
    """[B, T] float64; 0 for tokens that the policy did not draw."""
    drawn: torch.Tensor
    """[B, T] bool."""
    log_ratio: torch.Tensor
    """[B, T] float64, trainer - engine; 0 for tokens that the policy did not draw."""


def compare(samples: Sequence[Sample], log_probs: torch.Tensor) -> Views:
    """Puts the engine's log-probabilities beside the trainer's, [B, T]."""
    longest = log_probs.shape[1]
    drawn = drawn_mask([sample.tokens for sample in samples], longest)
    engine = torch.zeros(drawn.shape, dtype=torch.float64)
    for row, sample in zip(engine, samples, strict=True):
        values = sample.response.log_probs
        row[: len(values)] = torch.tensor(values, dtype=torch.float64)
    drawn = drawn.to(log_probs.device)
    engine = engine.to(log_probs.device).masked_fill(~drawn, 0.0)
    return Views(log_probs, engine, drawn, log_ratios(log_probs, engine, drawn))


@dataclass(frozen=True)
class Mismatch:
    """Sums over the drawn tokens of one replica."""

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
    factors: float = 0.0
    """Sum of the correction's factors."""
    clipped: int = 0
    """Tokens whose ratio was above the cap or outside of the band."""


def measure_mismatch(views: Views, correction: Correction | None = None) -> Mismatch:
    """Sums the differences and, if there is one, what the correction made of them."""
    drawn = views.drawn
    log_ratio = views.log_ratio[drawn]
    if not len(log_ratio):
        none = WeightSums(0, float("-inf"), float("-inf"))
        return Mismatch(0, 0.0, 0.0, 0.0, 0.0, 0.0, none, none)
    log_prob = log_ratio.abs()
    probability = (views.trainer[drawn].double().exp() - views.engine[drawn].exp()).abs()
    return Mismatch(
        tokens=len(log_ratio),
        log_prob=float(log_prob.sum()),
        log_prob_max=float(log_prob.max()),
        probability=float(probability.sum()),
        probability_max=float(probability.max()),
        kl=float((torch.expm1(log_ratio) - log_ratio).sum()),
        token_weights=weight_sums(log_ratio),
        sequence_weights=weight_sums(views.log_ratio.sum(1)[drawn.any(1)]),
        factors=float(correction.factors[drawn].double().sum()) if correction else 0.0,
        clipped=int(correction.clipped.sum()) if correction else 0,
    )


def gather_mismatch(views: Views, correction: Correction | None) -> dict[str, float]:
    """Averages over the drawn tokens of all replicas, the same on every rank. Collective.

    Args:
        views: Of this replica's responses; meaningful on the last stage.
        correction: Of their loss; None: there is none.
    """
    mine = None
    # One rank of each replica: the others of the last stage hold copies.
    if (
        is_last_stage()
        and parallel_state.get_tensor_model_parallel_rank() == 0
        and parallel_state.get_context_parallel_rank() == 0
    ):
        mine = measure_mismatch(views, correction)
    replicas = [replica for replica in gather_objects(mine) if replica is not None]
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
        metrics["correction/factor_mean"] = sum(each.factors for each in replicas) / tokens
        metrics["correction/clipped"] = sum(each.clipped for each in replicas) / tokens
    return metrics
