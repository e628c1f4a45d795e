"""What the pass did to a prompt group, and the metrics of a step."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

SKIP_REASONS = ("no_positive", "no_negative", "few_positive_tokens")


@dataclass(frozen=True)
class GroupReport:
    """Statistics of one prompt group. The same on all ranks that share the group."""

    skipped: str | None
    """Why all weights stayed 1 (one of SKIP_REASONS), or None where the group was weighted."""
    positive_tokens: int
    """Valid response tokens of positive responses, before sampling."""
    negative_tokens: int
    """Valid response tokens of negative responses."""
    rank: int = 0
    """Directions used; 0 where skipped."""
    mean_weight: float = 1.0
    """Mean weight over the negative tokens."""
    q_low: float = float("nan")
    """Lower residual quantile, per hidden dimension; NaN where skipped."""
    q_high: float = float("nan")
    """Upper residual quantile, per hidden dimension; NaN where skipped."""
    energy: float = float("nan")
    """Share of the positives' variance inside the subspace; NaN where skipped."""
    degenerate: bool = False
    """Whether the quantiles were too close and all negatives got the mid weight."""


def summarise(reports: Iterable[GroupReport]) -> dict[str, float]:
    """Flat metrics of the groups of a step.

    Args:
        reports: One report per prompt group. Over data-parallel ranks: gather the reports first.

    Returns:
        `resrl/groups`; fractions of all groups `resrl/skipped_fraction`, `resrl/skipped_<reason>`
        for every reason and `resrl/degenerate_fraction`; and over the groups that were weighted
        (left out when there are none): `resrl/mean_weight` (per negative token) and, per group,
        `resrl/residual_q_low`, `resrl/residual_q_high`, `resrl/energy`, `resrl/rank`.
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
    for name, field in (
        ("residual_q_low", "q_low"),
        ("residual_q_high", "q_high"),
        ("energy", "energy"),
        ("rank", "rank"),
    ):
        metrics[f"resrl/{name}"] = sum(getattr(r, field) for r in weighted) / len(weighted)
    return metrics
