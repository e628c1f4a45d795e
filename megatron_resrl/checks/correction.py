"""Responses drawn from another distribution than the trainer's."""

from __future__ import annotations

from collections.abc import Iterator

from megatron_resrl.checks.facts import Check
from megatron_resrl.config.problems import Problem
from megatron_resrl.config.schema_rollout import CorrectionConfig, RolloutConfig


def _check_truncation(rollout: RolloutConfig, correction: CorrectionConfig) -> Iterator[Problem]:
    """The loss's log-probabilities are those of the whole, untruncated distribution."""
    if correction.method == "none":
        reason = (
            "responses would be sampled from a truncated distribution, the loss uses "
            "log-probabilities of the whole distribution, and correction.method is none"
        )
        fix = "or set correction.method to token_tis"
        if 0 < rollout.top_p < 1:
            yield Problem("rollout.top_p", rollout.top_p, reason, f"set it to 1.0, {fix}")
        if rollout.top_k > 0:
            yield Problem("rollout.top_k", rollout.top_k, reason, f"set it to 0, {fix}")
    elif correction.method == "icepop" and 0 < rollout.top_p < correction.band[0]:
        yield Problem(
            "rollout.top_p",
            rollout.top_p,
            "the ratio of a token that is sampled from a nucleus is the nucleus's mass, which may "
            f"be as small as top_p, and correction.band drops ratios below {correction.band[0]}",
            "use a larger top_p, a band that begins below top_p, or correction.method token_tis",
        )


def _check_band(band: tuple[float, float]) -> Iterator[Problem]:
    low, high = band
    if not 0 <= low < 1 < high < float("inf"):
        problem = "not a ratio below 1 and one above 1; equal distributions have the ratio 1"
        yield Problem("correction.band", [low, high], problem, "use e.g. [0.5, 5.0]")


def _check_gates(warn: float | None, stop: float | None) -> Iterator[Problem]:
    if warn is not None and stop is not None and warn > stop:
        problem = f"larger than correction.stop_kl, which is {stop}: the run ends without a warning"
        fix = f"use at most {stop}, or null for no warning"
        yield Problem("correction.warn_kl", warn, problem, fix)


CORRECTION_CHECKS: tuple[Check, ...] = (
    lambda facts: _check_truncation(facts.recipe.rollout, facts.recipe.correction),
    lambda facts: _check_band(facts.recipe.correction.band),
    lambda facts: _check_gates(facts.recipe.correction.warn_kl, facts.recipe.correction.stop_kl),
)
