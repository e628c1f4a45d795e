"""Intervals by resampling what was drawn from a population: questions, and seeds of training."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

LEVEL = 0.95
"""Of all intervals."""
RESAMPLES = 10_000
_AT_ONCE = 2_000
"""Resamples in memory at once: 20 MB for 1,319 questions."""

Numbers = npt.NDArray[np.float64]


def resample_weights(generator: np.random.Generator, size: int, resamples: int) -> Numbers:
    """Weights of the members of a sample in its resamples; each row sums to 1.

    size - 1 draws with replacement, whose mean has the variance s^2 / size without bias; with size
    draws it is too small by (size - 1) / size, which is half for two seeds. One member has weight
    1.

    Returns:
        [resamples, size].

    Source: McCarthy and Snowden 1985, The bootstrap and finite population sampling.
    """
    if size == 1:
        return np.ones((resamples, 1))
    draws = generator.multinomial(size - 1, np.full(size, 1 / size), size=resamples)
    return draws / (size - 1)


def mean_intervals(
    values: Sequence[Sequence[float]], seed: Sequence[int], *, resamples: int = RESAMPLES
) -> list[tuple[float, float]] | None:
    """Percentile intervals at `LEVEL` of means over questions.

    Args:
        values: [quantities][questions], all resampled together.
        seed: Of the random numbers.
        resamples: At least 100.

    Returns:
        Low and high for each quantity; None with fewer than two questions.
    """
    values_QN = np.asarray(values, dtype=np.float64)
    if values_QN.ndim != 2 or values_QN.shape[1] < 2:
        return None
    generator = np.random.default_rng(list(seed))
    counts = [min(_AT_ONCE, resamples - start) for start in range(0, resamples, _AT_ONCE)]
    means = [
        resample_weights(generator, values_QN.shape[1], count) @ values_QN.T for count in counts
    ]
    return [(float(low), float(high)) for low, high in quantiles(np.concatenate(means)).T]


def quantiles(draws: Numbers) -> Numbers:
    """Low and high end of the interval at `LEVEL`, over the first dimension; [2, ...]."""
    tail = (1 - LEVEL) / 2
    return np.quantile(draws, [tail, 1 - tail], axis=0)
