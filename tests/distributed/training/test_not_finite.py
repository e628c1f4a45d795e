"""A gradient that is not finite on one rank, or whose square is not."""

from __future__ import annotations

from pathlib import Path

from ranks import run_ranks
from tiny_recipe import write_model


def test_not_finite_gradient_is_skipped_on_all_ranks_together(tmp_path):
    script = Path(__file__).with_name("ranks_not_finite.py")
    out = run_ranks(script, 2, write_model(tmp_path / "model"))
    for rank in (0, 1):
        assert f"RANK {rank} bad (False, True) huge (False, True) good (True, False)" in out
