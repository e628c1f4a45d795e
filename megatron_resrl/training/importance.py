"""Importance weights for responses sampled from another distribution than the trainer's."""

from __future__ import annotations

import logging
from dataclasses import dataclass

import torch
import torch.distributed as dist

from megatron_resrl.algorithms import correction_factors
from megatron_resrl.config.schema import CorrectionConfig
from megatron_resrl.diagnostics.mismatch import compare, gather_mismatch
from megatron_resrl.errors import RunError
from megatron_resrl.rollout.batch import RolloutBatch

logger = logging.getLogger(__name__)

_CAUSES = (
    "Likely causes: the engine has other weights than the trainer (a weight update that failed, "
    "rollout.max_staleness), other numerics (precision, kernels, quantisation), or another "
    "sampling than the trainer scores (temperature, top_p, top_k, penalties)"
)


class MismatchTooLarge(RunError):
    """The engine and the trainer disagree too much to learn from the responses."""

    common = True


@dataclass(frozen=True)
class ImportanceWeights:
    """What the comparison of engine and trainer gives a step."""

    weights: torch.Tensor
    """[B, T] fp32: what the loss of each token is multiplied by, meaningful on the last stage; 1
    where nothing is corrected."""
    metrics: dict[str, float]
    """The same on all ranks."""


def importance_weights(
    batch: RolloutBatch, log_probs: torch.Tensor, settings: CorrectionConfig, step: int
) -> ImportanceWeights:
    """Compares the engine's log-probabilities with the trainer's, before a step's first update.

    Collective.

    Args:
        batch: The B responses of this replica.
        log_probs: [B, T] fp32, recomputed by the trainer; meaningful on the last stage.
        settings: Method and gates.
        step: Number of the step, for messages.

    Raises:
        MismatchTooLarge: On all ranks, see `correction.stop_kl`.
    """
    pair = compare(batch, log_probs)
    correction = None
    if settings.method != "none":
        correction = correction_factors(
            pair.log_ratio,
            pair.loss_mask,
            method=settings.method,
            cap=settings.cap,
            band=settings.band,
        )
    metrics = gather_mismatch(pair, correction)
    check_mismatch(metrics["mismatch/kl"], settings, step, warn=dist.get_rank() == 0)
    weights = torch.ones_like(log_probs) if correction is None else correction.factors
    return ImportanceWeights(weights, metrics)


def check_mismatch(kl: float, settings: CorrectionConfig, step: int, *, warn: bool) -> None:
    """The gates: one that stops, one that warns. What is not a number passes neither.

    Args:
        kl: Nats per token, over all replicas.
        settings: Holds both limits.
        step: Number of the step.
        warn: This rank is the one that warns.

    Raises:
        MismatchTooLarge: The KL divergence is above `correction.stop_kl`.
    """
    found = f"step {step}: engine and trainer differ by mismatch/kl = {kl:.4g} nats per token"
    if settings.stop_kl is not None and not kl <= settings.stop_kl:
        raise MismatchTooLarge(
            f"{found}, above correction.stop_kl = {settings.stop_kl:g}; no weight was changed by "
            f"the step. {_CAUSES}; docs/mismatch.md tells how to find out which. With "
            "checkpoint.keep_rollouts the same command reads the step's rollout again, without it "
            "the step's responses are generated again"
        )
    if warn and settings.warn_kl is not None and not kl <= settings.warn_kl:
        logger.warning("%s, above correction.warn_kl = %g. %s", found, settings.warn_kl, _CAUSES)
