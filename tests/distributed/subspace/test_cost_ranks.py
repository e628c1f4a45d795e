from __future__ import annotations

from pathlib import Path

from ranks import run_ranks

FOLDER = Path(__file__).parent


def test_rates_are_the_same_bits_on_2_ranks():
    assert "rates agree" in run_ranks(FOLDER / "ranks_rates.py", 2)


def test_bytes_that_2_ranks_send_are_within_5_percent_of_the_prediction():
    assert "bytes agree" in run_ranks(FOLDER / "ranks_cost.py", 2)
