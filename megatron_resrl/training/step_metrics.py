"""Numbers of one step, from what replicas and samples know."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from megatron.core import parallel_state

from megatron_resrl.platform.distributed import gather_objects
from megatron_resrl.policy.batches import drawn_mask
from megatron_resrl.policy.policy import UpdateResult
from megatron_resrl.policy.schedule import is_last_stage
from megatron_resrl.rollout.collect import Sample
from megatron_resrl.subspace import GroupReport, summarise
from megatron_resrl.training.scoring import Scored

_MASSES = ("resrl/negative_mass", "resrl/negative_mass_unweighted")


@dataclass(frozen=True)
class ReplicaReport:
    """What one data-parallel replica's last stage adds to the metrics."""

    sums: list[dict[str, float]]
    """Token sums of each optimizer step."""
    tokens: int
    """Drawn response tokens."""
    entropy: float
    """Sum over them."""
    groups: list[GroupReport]
    weighing: dict[str, float]
    """Bytes and memory of the weighing passes."""


def gather_reports(
    samples: Sequence[Sample], scored: Scored, sums: list[dict[str, float]]
) -> list[ReplicaReport]:
    """What the last stages of all replicas know, on every rank. Collective.

    Args:
        samples: Of this replica.
        scored: Their scores, and the reports of the weights that each update used.
        sums: Token sums of each optimizer step; under context parallelism of this rank's tokens.
    """
    report = None
    if is_last_stage() and parallel_state.get_tensor_model_parallel_rank() == 0:
        report = ReplicaReport(sums, 0, 0.0, [], {})
        if parallel_state.get_context_parallel_rank() == 0:
            report = _report(samples, scored, sums)
    return [replica for replica in gather_objects(report) if replica is not None]


def _report(
    samples: Sequence[Sample], scored: Scored, sums: list[dict[str, float]]
) -> ReplicaReport:
    drawn = drawn_mask([sample.tokens for sample in samples], scored.entropy.shape[1])
    return ReplicaReport(
        sums=sums,
        tokens=int(drawn.sum()),
        entropy=float(scored.entropy.cpu()[drawn].sum()),
        groups=list(scored.reports.values()),
        weighing=scored.metrics,
    )


def of_samples(samples: Sequence[Sample], advantages: torch.Tensor) -> dict[str, float]:
    """Rewards, lengths and how many groups can teach something.

    A response's length counts the tokens that the policy drew, over all its turns.
    """
    count = len(samples)
    lengths = [sample.response.drawn for sample in samples]
    group = torch.tensor([sample.group for sample in samples])
    taught = torch.zeros(int(group.max()) + 1, dtype=torch.bool)
    taught[group[advantages != 0]] = True
    return {
        "reward/mean": sum(sample.reward for sample in samples) / count,
        "reward/score_mean": sum(sample.score for sample in samples) / count,
        "reward/timeouts": float(sum(sample.timed_out for sample in samples)),
        "reward/killed": float(sum(sample.killed for sample in samples)),
        "reward/groups_with_signal": float(taught.double().mean()),
        "response/length_mean": sum(lengths) / count,
        "response/length_max": float(max(lengths)),
        "response/truncated": sum(s.response.finish_reason == "length" for s in samples) / count,
    }


def of_replicas(reports: Sequence[ReplicaReport], *, spectrum: bool) -> dict[str, float]:
    """Averages over all replicas; of bytes and memory of the weighing passes the largest.

    `loss` and the negative mass are means over the updates. `resrl/negative_mass` is what the wrong
    responses weigh in the loss, the sum of c_i |A_it| over their tokens with c_i of the aggregation
    and A_it the token's advantage; `.._unweighted` the same without token weights, and `.._share`
    the first over the second. `clip/..` and `approx_kl` are means over the tokens of the updates:
    those of responses with an advantage. `entropy` is the mean over all drawn tokens.
    """
    metrics: dict[str, float] = {}
    sums: dict[str, float] = {}
    for report in reports:
        for update in report.sums:
            for name, value in update.items():
                sums[name] = sums.get(name, 0.0) + value
    updates = max(len(report.sums) for report in reports)
    if updates:
        tokens = sums["tokens"]
        for name in ("loss", *_MASSES):
            metrics[name] = sums[name] / updates
        weighted, plain = (sums[name] for name in _MASSES)
        if plain:
            metrics["resrl/negative_mass_share"] = weighted / plain
        metrics["clip/low"] = sums["clipped_low"] / tokens
        metrics["clip/high"] = sums["clipped_high"] / tokens
        metrics["clip/dual"] = sums["dual_clipped"] / tokens
        metrics["approx_kl"] = sums["approx_kl"] / tokens
    tokens = sum(report.tokens for report in reports)
    metrics["entropy"] = sum(report.entropy for report in reports) / tokens
    groups = [group for report in reports for group in report.groups]
    if groups:
        metrics |= summarise(groups, spectrum=spectrum)
    for report in reports:
        for name, value in report.weighing.items():
            metrics[name] = max(metrics.get(name, 0.0), value)
    return metrics


def of_updates(updates: Sequence[UpdateResult], left_out: int) -> dict[str, float]:
    """Optimizer steps: how many, how large."""
    metrics = {
        "update/applied": float(sum(update.applied for update in updates)),
        "update/not_finite": float(sum(not update.applied for update in updates)),
        "update/without_signal": float(left_out),
    }
    if updates:
        metrics["grad_norm"] = sum(update.grad_norm for update in updates) / len(updates)
        metrics["learning_rate"] = updates[-1].learning_rate
    return metrics
