"""Numbers of one step, from what replicas and samples know."""

from __future__ import annotations

from collections import Counter
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
from megatron_resrl.training.updating import LossSums

_MASSES = ("resrl/negative_mass", "resrl/negative_mass_unweighted")


@dataclass(frozen=True)
class ReplicaReport:
    """What one data-parallel replica's last stage adds to the metrics."""

    sums: list[LossSums]
    """Of each optimizer step."""
    tokens: int
    """Drawn response tokens."""
    entropy: float
    """Sum over them."""
    groups: list[GroupReport]
    weighing: dict[str, float]
    """Bytes and memory of the weighing passes."""


def gather_reports(
    samples: Sequence[Sample], scored: Scored, sums: list[LossSums]
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


def _report(samples: Sequence[Sample], scored: Scored, sums: list[LossSums]) -> ReplicaReport:
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
    lengths = [sample.response.num_generated_tokens for sample in samples]
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
    the first over the second. Metrics of the algorithm are means over the tokens of the updates
    (those of responses with a loss) or over the updates, see `LossOutputs`. `entropy` is the mean
    over all generated tokens.
    """
    updates = max(len(report.sums) for report in reports)
    metrics = _of_losses([sums for report in reports for sums in report.sums], updates)
    tokens = sum(report.tokens for report in reports)
    metrics["entropy"] = sum(report.entropy for report in reports) / tokens
    groups = [group for report in reports for group in report.groups]
    if groups:
        metrics |= summarise(groups, spectrum=spectrum)
    for report in reports:
        for name, value in report.weighing.items():
            metrics[name] = max(metrics.get(name, 0.0), value)
    return metrics


def _of_losses(sums: Sequence[LossSums], updates: int) -> dict[str, float]:
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
