from __future__ import annotations

from pathlib import Path

from ranks import run_ranks


def test_logit_factors_over_2_ranks_equal_those_of_one():
    output = run_ranks(Path(__file__).parent / "ranks_interference.py", 2)
    assert "all splits agree" in output
