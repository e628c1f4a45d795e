"""Differences between arms: paired by question, with intervals over questions and seeds together.

Legend of suffixes: B resamples, S seeds (runs of an arm), Q questions, T sets.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from megatron_resrl.evaluation.bootstrap import (
    LEVEL,
    RESAMPLES,
    Numbers,
    quantiles,
    resample_weights,
)

POWER = 0.8
"""Of the smallest difference that is reported."""
_AT_ONCE = 2_000


@dataclass(frozen=True)
class Difference:
    """How far an arm lies above the baseline, on one set or on the mean of sets."""

    estimate: float
    low: float
    high: float
    standard_error: float
    p_value: float
    """Two-sided, of the difference being 0, not corrected."""


def paired_differences(
    baseline: Sequence[Numbers],
    arm: Sequence[Numbers],
    seed: Sequence[int],
    *,
    resamples: int = RESAMPLES,
) -> list[Difference]:
    """Differences of an arm's means from the baseline's.

    Questions are resampled together for both arms, because both have answered the same ones, and
    seeds of each arm on its own, in the same way for all sets (the pigeonhole bootstrap of crossed
    factors, whose variance is slightly too large where responses are noisy). An arm with one run
    contributes no spread of seeds: the interval then holds for this run, not for the method.

    Args:
        baseline: [T][S, Q], a metric for each run and question.
        arm: [T][S, Q] with the same questions.
        seed: Of the random numbers.
        resamples: B, at least 100.

    Returns:
        One for each set, and the last of the mean over sets.

    Source: Owen 2007, The pigeonhole bootstrap, arXiv 0712.1111; seeds and questions with the
    weights of `resample_weights`.
    """
    generator = np.random.default_rng(list(seed))
    counts = [min(_AT_ONCE, resamples - start) for start in range(0, resamples, _AT_ONCE)]
    chunks = [_draw(baseline, arm, generator, count) for count in counts]
    draws_BT = np.concatenate(chunks)
    estimates = [float(b.mean() - a.mean()) for a, b in zip(baseline, arm, strict=True)]
    draws_BT = np.column_stack([draws_BT, draws_BT.mean(axis=1)])
    estimates.append(float(np.mean(estimates)))
    return [
        _difference(estimate, draws_B)
        for estimate, draws_B in zip(estimates, draws_BT.T, strict=True)
    ]


def _draw(
    baseline: Sequence[Numbers], arm: Sequence[Numbers], generator: np.random.Generator, count: int
) -> Numbers:
    """[B, T] differences of resamples."""
    of_baseline_BS = resample_weights(generator, len(baseline[0]), count)
    of_arm_BS = resample_weights(generator, len(arm[0]), count)
    columns = []
    for first_SQ, second_SQ in zip(baseline, arm, strict=True):
        questions_BQ = resample_weights(generator, first_SQ.shape[1], count)
        differences_BQ = of_arm_BS @ second_SQ - of_baseline_BS @ first_SQ
        columns.append((questions_BQ * differences_BQ).sum(axis=1))
    return np.column_stack(columns)


def _difference(estimate: float, draws_B: Numbers) -> Difference:
    low, high = quantiles(draws_B)
    beyond = min((draws_B <= 0).sum(), (draws_B >= 0).sum())
    p_value = min(1.0, 2 * (1 + float(beyond)) / (len(draws_B) + 1))
    return Difference(estimate, float(low), float(high), float(draws_B.std(ddof=1)), p_value)


def holm(p_values: Sequence[float]) -> list[float]:
    """P-values corrected for their number: below a is significant with family-wise error a.

    Source: Holm 1979, A simple sequentially rejective multiple test procedure.
    """
    order = sorted(range(len(p_values)), key=p_values.__getitem__)
    corrected = [0.0] * len(p_values)
    largest = 0.0
    for place, index in enumerate(order):
        largest = max(largest, (len(p_values) - place) * p_values[index])
        corrected[index] = min(1.0, largest)
    return corrected


def smallest_difference(standard_error: float, arms: int) -> float:
    """The true difference that data with this standard error find with probability `POWER`.

    (z of the test at 1 - LEVEL over the number of comparisons, two-sided, + z of the power) times
    the standard error; Holm's first step.

    Args:
        standard_error: Of the difference.
        arms: Comparisons with the baseline.
    """
    normal = NormalDist()
    test = normal.inv_cdf(1 - (1 - LEVEL) / (2 * arms))
    return (test + normal.inv_cdf(POWER)) * standard_error
