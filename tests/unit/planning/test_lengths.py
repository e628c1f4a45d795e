"""Response lengths of which only the mean and the limit are known."""

from __future__ import annotations

import math

import pytest

from megatron_resrl.planning.lengths import Lengths


@pytest.mark.parametrize("mean", [50, 400, 2000, 3900])
def test_lengths_have_the_mean_that_is_given(mean: float) -> None:
    lengths = Lengths(mean, 4096)
    # One response's longest is itself: the mean is the integral of P(length > t).
    assert lengths.longest_of(1) == pytest.approx(mean, rel=5e-3)


def test_lengths_at_the_limit_are_all_as_long() -> None:
    lengths = Lengths(4096, 4096)
    assert lengths.still_running(4095) == 1.0
    assert lengths.still_running(4096) == 0.0
    assert lengths.longest_of(7) == pytest.approx(4096)


def test_lengths_longest_is_the_harmonic_number_of_exponentials() -> None:
    # The mean of the largest of n exponentials is the scale times 1 + 1/2 + ... + 1/n.
    lengths = Lengths(100, 100_000)
    expected = 100 * sum(1 / k for k in range(1, 33))
    assert lengths.longest_of(32) == pytest.approx(expected, rel=1e-2)
    assert lengths.still_running(100) == pytest.approx(math.exp(-1))
