from __future__ import annotations

import math
from dataclasses import asdict

from hypothesis import given
from hypothesis import strategies as st

from megatron_resrl.subspace.rates import MachineRates, measure_rates, rounded


def test_rates_of_this_machine_are_positive_and_a_lone_rank_needs_no_link():
    rates = measure_rates("cpu")
    assert all(value > 0 for name, value in asdict(rates).items() if name != "latency")
    assert rates.link_bandwidth == math.inf
    assert rates.latency == 0
    assert isinstance(rates, MachineRates)


def test_measured_rates_are_powers_of_two():
    rates = [value for value in asdict(measure_rates("cpu")).values() if math.isfinite(value)]
    assert all(value == 0 or math.frexp(value)[0] == 0.5 for value in rates)


@given(st.integers(-30, 60), st.floats(0.75, 1.35))
def test_noise_around_a_power_of_two_does_not_change_a_rate(exponent, noise):
    assert rounded(2.0**exponent * noise) == 2.0**exponent
    assert rounded(0.0) == 0
    assert rounded(math.inf) == math.inf
