from __future__ import annotations

import math
from dataclasses import asdict

from megatron_resrl.subspace.rates import MachineRates, measure_rates


def test_rates_of_this_machine_are_positive_and_a_lone_rank_needs_no_link():
    rates = measure_rates("cpu")
    assert all(value > 0 for name, value in asdict(rates).items() if name != "latency")
    assert rates.link_bandwidth == math.inf
    assert rates.latency == 0
    assert isinstance(rates, MachineRates)
