from __future__ import annotations

from pathlib import Path

from ranks import run_ranks


def test_sequence_sum_over_two_ranks_is_that_of_one() -> None:
    assert "all losses agree" in run_ranks(Path(__file__).with_name("ranks_sequence_sum.py"), 2)
