"""Metrics of every step, from what its batch says and its replicas measure.

Shapes: B responses of the step (or of this replica), T tokens of the longest response.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from megatron.core import parallel_state
from torch import Tensor

from megatron_resrl.algorithms import LossSums
from megatron_resrl.diagnostics.observer import StepStart, StepState
from megatron_resrl.platform.distributed import gather_objects
from megatron_resrl.policy.results import OnFinalStates, UpdateResult
from megatron_resrl.policy.schedule import is_last_stage
from megatron_resrl.policy.token_budget import Fed
from megatron_resrl.rollout.batch import RolloutBatch

_MASSES = ("resrl/negative_mass", "resrl/negative_mass_unweighted")


class StepMetrics:
    """Observes rewards, lengths, loss, entropy and the optimizer; see `StepObserver`."""

    def __init__(self, diagnose_every: int = 0) -> None:
        """
        Args:
            diagnose_every: Steps between details of the weighting; 0: never.
        """
        self._diagnose_every = diagnose_every

    def before_scoring(self, start: StepStart) -> OnFinalStates | None:
        """Nothing."""
        return None

    def after_scoring(self, state: StepState) -> None:
        """Nothing."""

    def after_updates(self, state: StepState) -> dict[str, float]:
        """All metrics of this file. Collective."""
        reports = gather_reports(state)
        detailed = is_due(state.step, self._diagnose_every)
        groups = [group for report in reports for group in report.groups]
        return (
            batch_metrics(state.batch, state.batch.advantages)
            | replica_metrics(reports)
            | state.weighting.summarise(groups, detailed=detailed)
            | update_metrics(state.updates, len(state.left_out))
        )


def is_due(step: int, every: int) -> bool:
    """Whether something that is done every so many steps is done in this one; 0: never."""
    return every > 0 and step % every == 0


@dataclass(frozen=True)
class ReplicaReport:
    """What one rank of a data-parallel replica's last stage adds to the metrics."""

    sums: list[LossSums]
    """Of each optimizer step; under context parallelism of the rank's own tokens."""
    tokens: int
    """Generated tokens."""
    entropy: float
    """Sum over them."""
    groups: list[Any]
    """Reports of the weighting."""
    weighting: dict[str, float]
    """Totals and peaks of the weighting's passes."""
    fed: list[Fed] = field(default_factory=list)
    """Of each optimizer step."""


def gather_reports(state: StepState) -> list[ReplicaReport]:
    """What the last stages of all replicas know, on every rank. Collective."""
    report = None
    # Tensor-parallel ranks hold copies; context-parallel ranks share only the sums' tokens.
    if is_last_stage() and parallel_state.get_tensor_model_parallel_rank() == 0:
        report = ReplicaReport(state.sums, 0, 0.0, [], {})
        if parallel_state.get_context_parallel_rank() == 0:
            mask_BT, weights = state.local.loss_mask, state.token_weights
            report = ReplicaReport(
                sums=state.sums,
                tokens=int(mask_BT.sum()),
                entropy=float(state.scores.entropy.cpu()[mask_BT].sum()),
                groups=list(weights.reports.values()),
                weighting={**weights.totals, **weights.peaks},
                fed=state.fed,
            )
    return [replica for replica in gather_objects(report) if replica is not None]


def batch_metrics(batch: RolloutBatch, advantages: Tensor) -> dict[str, float]:
    """Rewards, lengths and how many groups have an advantage.

    Args:
        batch: Of the step. A response's length counts its generated tokens, over all turns.
        advantages: [B] of responses.
    """
    lengths = batch.num_generated_tokens
    groups = int(batch.group_ids.max()) + 1
    nonzero = len(batch.group_ids[advantages != 0].unique())
    return {
        "reward/mean": float(batch.rewards.mean()),
        "reward/score_mean": float(batch.scores.mean()),
        "reward/timeouts": float(batch.timed_out.sum()),
        "reward/killed": float(batch.killed.sum()),
        "rollout/nonzero_advantage_groups": nonzero / groups,
        "response/length_mean": float(lengths.double().mean()),
        "response/length_max": float(lengths.max()),
        "response/truncated": float(batch.truncated.double().mean()),
    }


def replica_metrics(reports: Sequence[ReplicaReport]) -> dict[str, float]:
    """Means over all replicas; of bytes and memory of the weighting the largest.

    `loss` and the negative mass are means over the updates. `resrl/negative_mass` is what the
    incorrect responses weigh in the loss, the sum of c_i |A_it| over their tokens with c_i of the
    aggregation and A_it the token's advantage; `.._unweighted` the same without token weights, and
    `.._share` the first over the second. Metrics of the algorithm are means over the tokens of the
    updates (those of responses with a loss) or over the updates, see `LossOutputs`. `entropy` is
    the mean over all generated tokens. `step/padding` is the share of padding in the positions that
    the updates feed the model, `step/shared_prompt_tokens` what they need not feed again.
    """
    updates = max(len(report.sums) for report in reports)
    metrics = _loss_metrics([sums for report in reports for sums in report.sums], updates)
    tokens = sum(report.tokens for report in reports)
    metrics["entropy"] = sum(report.entropy for report in reports) / tokens
    fed = [each for report in reports for each in report.fed]
    if positions := sum(each.positions for each in fed):
        metrics["step/padding"] = 1 - sum(each.tokens for each in fed) / positions
        metrics["step/shared_prompt_tokens"] = float(sum(each.shared for each in fed))
    for report in reports:
        for name, value in report.weighting.items():
            metrics[name] = max(metrics.get(name, 0.0), value)
    return metrics


def _loss_metrics(sums: Sequence[LossSums], updates: int) -> dict[str, float]:
    """Means over tokens and over updates of what all ranks have of the losses."""
    if not updates:
        return {}
    token_means: Counter[str] = Counter()
    update_means: Counter[str] = Counter()
    for each in sums:
        token_means.update(each.token_means)
        update_means.update(each.update_means)
    tokens = sum(each.tokens for each in sums)
    metrics = {name: total / tokens for name, total in token_means.items()}
    metrics |= {name: total / updates for name, total in update_means.items()}
    weighted, unweighted = (update_means[name] for name in _MASSES)
    if unweighted:
        metrics["resrl/negative_mass_share"] = weighted / unweighted
    return metrics


def update_metrics(updates: Sequence[UpdateResult], left_out: int) -> dict[str, float]:
    """Optimizer steps: how many, how large.

    Args:
        updates: Those that were made.
        left_out: How many were not, for no response had a loss.
    """
    metrics = {
        "update/applied": float(sum(update.applied for update in updates)),
        "update/not_finite": float(sum(not update.applied for update in updates)),
        "update/without_signal": float(left_out),
    }
    if updates:
        metrics["grad_norm"] = sum(update.grad_norm for update in updates) / len(updates)
        metrics["learning_rate"] = updates[-1].learning_rate
    return metrics
