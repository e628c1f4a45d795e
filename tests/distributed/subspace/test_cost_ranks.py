from __future__ import annotations

from pathlib import Path

from ranks import run_ranks


def test_rates_are_the_same_bits_on_2_ranks():
    assert "rates agree" in run_ranks(Path(__file__).parent / "ranks_cost.py", 2)
