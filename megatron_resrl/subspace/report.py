"""What the pass did to a prompt group, and the metrics of a step."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from torch import Tensor

from megatron_resrl.subspace.plan import GroupPlan
from megatron_resrl.subspace.weighting import MIN_QUANTILE_SPREAD

SKIP_REASONS = ("no_positive", "no_negative", "few_positive_tokens")
_NAN = float("nan")


@dataclass(frozen=True)
class GroupReport:
    """Statistics of one prompt group. The same on all ranks that share the group."""

    skipped: str | None
    """Why all weights stayed 1 (one of SKIP_REASONS), or None where the group was weighted."""
    positive_tokens: int
    """Counted tokens of positive responses, before sampling."""
    negative_tokens: int
    """Counted tokens of negative responses."""
    mean_weight: float = 1.0
    """Mean weight over the negative tokens."""
    q_low: float = _NAN
    """Lower residual quantile, per hidden dimension; NaN where skipped, as all that follow."""
    q_high: float = _NAN
    """Upper residual quantile, per hidden dimension."""
    energy: float = _NAN
    """Share of the positives' variance inside the subspace."""
    rank: int = 0
    """Directions used; 0 where skipped."""
    top_energy: float = _NAN
    """Share of the variance along the first direction."""
    condition: float = _NAN
    """Largest over smallest singular value of the directions used."""
    effective_rank: float = _NAN
    """exp(entropy) of the captured spectrum: how many directions share the variance."""
    degenerate: bool = False
    """Whether the quantiles were too close and all negatives got the mid weight."""


def reports_of(plan: GroupPlan, weighted: Sequence[tuple[Tensor, Tensor]]) -> list[GroupReport]:
    """Reports of all groups of a plan.

    Args:
        plan: The plan.
        weighted: For each window the indices of its weighted groups [G], and [G, 8] their
            measurements in the order of the fields of `GroupReport`, from `mean_weight` on.

    Returns:
        One report per group, in the plan's order.
    """
    found: dict[int, list[float]] = {}
    for groups, summary_G8 in weighted:
        found |= dict(zip(groups.tolist(), summary_G8.tolist(), strict=True))
    reports = []
    for group, (skipped, positives, negatives) in enumerate(
        zip(plan.skipped, plan.positive_tokens, plan.negative_tokens, strict=True)
    ):
        report = GroupReport(skipped, positives, negatives)
        if skipped is None:
            mean, low, high, energy, rank, top_energy, condition, effective_rank = found[group]
            report = GroupReport(
                skipped,
                positives,
                negatives,
                mean_weight=mean,
                q_low=low,
                q_high=high,
                energy=energy,
                rank=int(rank),
                top_energy=top_energy,
                condition=condition,
                effective_rank=effective_rank,
                degenerate=high - low < MIN_QUANTILE_SPREAD,
            )
        reports.append(report)
    return reports


_PER_GROUP = {
    "residual_q_low": "q_low",
    "residual_q_high": "q_high",
    "energy": "energy",
    "rank": "rank",
}
_SPECTRUM = {
    "spectrum_top_energy": "top_energy",
    "spectrum_condition": "condition",
    "spectrum_effective_rank": "effective_rank",
}


def summarise(reports: Iterable[GroupReport], *, spectrum: bool = False) -> dict[str, float]:
    """Flat metrics of the groups of a step.

    Args:
        reports: One report per prompt group. Over data-parallel ranks: gather the reports first.
        spectrum: Also what the eigenvalues look like.

    Returns:
        `resrl/groups`; fractions of all groups `resrl/skipped_fraction`, `resrl/skipped_<reason>`
        for every reason and `resrl/degenerate_fraction`; and over the groups that were weighted
        (left out when there are none): `resrl/mean_weight` (per negative token) and, per group,
        `resrl/residual_q_low`, `resrl/residual_q_high`, `resrl/energy`, `resrl/rank`, and where
        asked for `resrl/spectrum_top_energy`, `resrl/spectrum_condition`,
        `resrl/spectrum_effective_rank`.
    """
    reports = list(reports)
    count = max(len(reports), 1)
    metrics = {"resrl/groups": float(len(reports))}
    metrics["resrl/skipped_fraction"] = sum(r.skipped is not None for r in reports) / count
    for reason in SKIP_REASONS:
        metrics[f"resrl/skipped_{reason}"] = sum(r.skipped == reason for r in reports) / count
    metrics["resrl/degenerate_fraction"] = sum(r.degenerate for r in reports) / count
    weighted = [r for r in reports if r.skipped is None]
    if not weighted:
        return metrics
    tokens = sum(r.negative_tokens for r in weighted)
    metrics["resrl/mean_weight"] = sum(r.mean_weight * r.negative_tokens for r in weighted) / tokens
    for name, field in (_PER_GROUP | (_SPECTRUM if spectrum else {})).items():
        metrics[f"resrl/{name}"] = sum(getattr(r, field) for r in weighted) / len(weighted)
    return metrics
