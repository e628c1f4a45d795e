"""One step of supervised training, pretraining or fine-tuning: cross-entropy of next tokens."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from megatron.core import parallel_state

from megatron_resrl.observe.phases import phase
from megatron_resrl.observe.timers import PhaseTimers
from megatron_resrl.platform.distributed import device
from megatron_resrl.platform.meetings import meeting
from megatron_resrl.policy.batches import TokenBatch
from megatron_resrl.policy.cross_entropy import TokenLoss
from megatron_resrl.policy.policy import Policy
from megatron_resrl.policy.schedule import is_last_stage


@dataclass(frozen=True)
class SupervisedBatch:
    """What one data-parallel replica takes of a step."""

    tokens: TokenBatch
    """Its sequences; `loss_mask` says which response tokens are targets."""
    parts: Sequence[Sequence[int]]
    """The rows of each micro-batch."""
    shared_tokens: int | None = None
    """Tokens that the model need not be fed again; None: nothing is shared."""

    @property
    def num_targets(self) -> int:
        """Of this replica."""
        return int(self.tokens.loss_mask.sum())


@dataclass(frozen=True)
class SupervisedOutcome:
    """What one step did, the same on all ranks."""

    metrics: dict[str, float]
    """`loss` (nats per target), `targets`, `grad_norm`, `learning_rate`, and where it has a
    coefficient `z_loss`, the part of the objective that `loss` leaves out. With a loss that
    balances experts `moe_aux_loss`, without its coefficient. Where beginnings are shared
    `step/shared_prompt_tokens`."""
    finite: bool
    """False: the update was skipped because a gradient was not finite."""


def supervised_step(
    policy: Policy, batch: SupervisedBatch, z_loss_coefficient: float, timers: PhaseTimers
) -> SupervisedOutcome:
    """One optimizer step on the mean cross-entropy over the targets of all replicas. Collective.

    Args:
        policy: Updated in place.
        batch: This replica's; the same on all ranks of the replica.
        z_loss_coefficient: See `TokenLoss`.
        timers: The phase `update` is timed here.

    Raises:
        ValueError: No replica has a target.
    """
    with phase(timers, "update"):
        targets = _sum_over_replicas(batch.num_targets)
        if not targets:
            raise ValueError("no sequence of the step has a target")
        loss = TokenLoss(1.0 / targets, z_loss_coefficient)
        result = policy.fit(policy.micro_batches_of(batch.tokens, batch.parts), loss)
        sums = _sum_over_model(result.collected, shape=(2,))
    negative_log_prob, squared_normaliser = sums.tolist()
    metrics = {
        "loss": negative_log_prob / targets,
        "targets": float(targets),
        "grad_norm": result.grad_norm,
        "learning_rate": result.learning_rate,
    }
    if batch.shared_tokens is not None:
        saved = _sum_over_replicas(batch.shared_tokens)
        metrics["step/shared_prompt_tokens"] = float(saved)
    if z_loss_coefficient:
        metrics["z_loss"] = z_loss_coefficient * squared_normaliser / targets
    if result.balancing_loss is not None:
        metrics["moe_aux_loss"] = result.balancing_loss
    return SupervisedOutcome(metrics, result.applied)


def mean_loss(policy: Policy, batches: Sequence[SupervisedBatch]) -> dict[str, float]:
    """Cross-entropy without gradient, the mean over all targets of all replicas. Collective.

    Args:
        policy: Unchanged.
        batches: This replica's, as many as the other replicas have.

    Returns:
        `loss` in nats per target, `perplexity` (its exponential) and `targets`; the loss is NaN
        without targets.
    """
    sums, targets = [], 0
    for batch in batches:
        scores = policy.score(policy.micro_batches_of(batch.tokens, batch.parts))
        sums += [-each.log_probs.double().sum() for each in scores]
        targets += batch.num_targets
    targets = _sum_over_replicas(targets)
    total = _sum_over_model(sums, shape=()).item()
    loss = total / targets if targets else math.nan
    return {"loss": loss, "perplexity": _exponential(loss), "targets": targets}


def _sum_over_replicas(number: int) -> int:
    """Of a number that all ranks of a replica have. Collective."""
    total = torch.tensor(number, dtype=torch.int64, device=device())
    with meeting():
        dist.all_reduce(total, group=parallel_state.get_data_parallel_group())
        return int(total)


def _sum_over_model(parts: Sequence[torch.Tensor], shape: tuple[int, ...]) -> torch.Tensor:
    """Sum of what the last stages of all replicas have, float64, on the host. Collective.

    Args:
        parts: Of micro-batches, on the last stages; the same on all tensor-parallel ranks.
        shape: Of each part.
    """
    total = torch.zeros(shape, dtype=torch.float64, device=device())
    if is_last_stage() and parallel_state.get_tensor_model_parallel_rank() == 0 and parts:
        total += torch.stack(list(parts)).double().sum(0)
    dist.all_reduce(total)
    return total.cpu()


def _exponential(loss: float) -> float:
    try:
        return math.exp(loss)
    except OverflowError:
        return math.inf
