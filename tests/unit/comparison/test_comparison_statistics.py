"""Differences between arms, against formulas written out and data whose truth is known."""

from __future__ import annotations

from statistics import NormalDist

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron_resrl.comparison.statistics import (
    holm,
    paired_differences,
    smallest_difference,
)


def arms(generator, seeds, questions, *, difference=0.0, of_seeds=0.03, of_questions=0.08):
    """Two arms: common difficulty, an effect that differs by question, one of each seed, noise."""
    difficulty = generator.beta(0.5, 0.5, size=questions)

    def arm(shift):
        seed = generator.normal(0, of_seeds, size=(seeds, 1))
        return difficulty + shift + seed + generator.normal(0, 0.1, size=(seeds, questions))

    return arm(0.0), arm(difference + generator.normal(0, of_questions, size=questions))


def test_paired_difference_of_single_runs_is_the_paired_test():
    baseline, arm = arms(np.random.default_rng(0), 1, 300, difference=0.02)
    (found, mean) = paired_differences([baseline], [arm], (1,))
    differences = (arm - baseline)[0]
    error = differences.std(ddof=1) / 300**0.5
    # 10,000 resamples give a standard error within 1 % and a percentile of 2.5 % within 0.05
    # standard errors; twice that.
    assert found.estimate == pytest.approx(differences.mean())
    assert found.standard_error == pytest.approx(error, rel=0.02)
    low, high = differences.mean() - 1.96 * error, differences.mean() + 1.96 * error
    assert (found.low, found.high) == pytest.approx((low, high), abs=0.1 * error)
    expected = 2 * NormalDist().cdf(-abs(differences.mean()) / error)
    assert found.p_value == pytest.approx(expected, abs=0.02)
    assert mean.estimate == found.estimate
    # Without the pairs the interval would be many times as wide.
    apart = (baseline.var(ddof=1) / 300 + arm.var(ddof=1) / 300) ** 0.5
    assert found.standard_error < 0.5 * apart


def test_paired_difference_has_the_variance_of_crossed_factors():
    baseline, arm = arms(np.random.default_rng(3), 4, 50)
    found = paired_differences([baseline], [arm], (0,), resamples=40_000)[0]
    # The weights are independent, so that E[w w'] of questions and of seeds multiply out.
    question = np.full((50, 50), -1 / 50 / 49 / 50) + np.eye(50) / 49 / 50

    def moments(size):
        """Of one factor's weights: their second moments are 1 / size^2 plus the covariance."""
        covariance = (np.eye(size) / size - 1 / size**2) / (size - 1)
        return covariance

    question = moments(50)
    ones = np.full((50, 50), 1 / 50**2)
    variance = 0.0
    for values in (baseline, arm):
        seeds = moments(4)
        variance += np.einsum("st,sq,tr,qr->", seeds, values, values, question + ones)
    means = (arm - baseline).mean(axis=0)
    variance += means @ question @ means
    assert found.standard_error == pytest.approx(variance**0.5, rel=0.02)


def test_paired_differences_are_those_of_their_seed():
    baseline, arm = arms(np.random.default_rng(4), 2, 20)
    first = paired_differences([baseline, baseline[:, :9]], [arm, arm[:, :9]], (5,), resamples=200)
    again = paired_differences([baseline, baseline[:, :9]], [arm, arm[:, :9]], (5,), resamples=200)
    assert first == again
    assert len(first) == 3
    assert first[2].estimate == pytest.approx((first[0].estimate + first[1].estimate) / 2)
    assert first != paired_differences(
        [baseline, baseline[:, :9]], [arm, arm[:, :9]], (6,), resamples=200
    )


@pytest.mark.parametrize(("seeds", "of_seeds"), [(1, 0.0), (2, 0.03), (5, 0.03)])
def test_paired_intervals_cover_the_true_difference(seeds, of_seeds):
    generator = np.random.default_rng(7)
    trials, covered = 200, 0
    for trial in range(trials):
        pair = arms(generator, seeds, 40, difference=0.05, of_seeds=of_seeds)
        found = paired_differences([pair[0]], [pair[1]], (trial,), resamples=500)[0]
        covered += found.low <= 0.05 <= found.high
    # 200 trials: a standard error of 1.5 %, three of them below 95 % and 1 % that percentiles of
    # 40 questions lack; above, the bootstrap of crossed factors is conservative.
    assert covered / trials >= 0.95 - 0.055


def test_paired_difference_finds_a_planted_one_and_no_other():
    generator = np.random.default_rng(8)
    found = paired_differences(*([each] for each in arms(generator, 3, 200, difference=0.15)), (0,))
    assert found[0].low > 0
    assert found[0].p_value < 0.01
    nothing = paired_differences(*([each] for each in arms(generator, 3, 200)), (0,))
    assert nothing[0].low < 0 < nothing[0].high
    assert nothing[0].p_value > 0.05


def test_smallest_difference_is_found_four_times_in_five():
    generator = np.random.default_rng(9)
    error = 0.02
    truth = smallest_difference(error, 1)
    assert truth == pytest.approx((1.959964 + 0.841621) * error, rel=1e-5)
    estimates = generator.normal(truth, error, size=20_000)
    share = (np.abs(estimates) > 1.959964 * error).mean()
    # Standard error of the share: 0.3 %.
    assert share == pytest.approx(0.8, abs=0.012)
    # Two comparisons are tested at 2.5 % each.
    assert smallest_difference(error, 2) == pytest.approx((2.241403 + 0.841621) * error, rel=1e-5)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_holm_is_the_largest_bound_of_smaller_p_values(p_values):
    corrected = holm(p_values)
    ranked = sorted(p_values)
    for own, found in zip(p_values, corrected, strict=True):
        bounds = [(len(ranked) - rank) * each for rank, each in enumerate(ranked) if each <= own]
        assert found == pytest.approx(min(1.0, max(bounds)))


def test_holm_of_a_published_example():
    # Wikipedia, Holm-Bonferroni method: 0.01, 0.04, 0.03, 0.005.
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
