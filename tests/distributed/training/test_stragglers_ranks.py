"""Of two real ranks the slow one is found, although both take as long for every phase."""

from __future__ import annotations

import json
from pathlib import Path

from ranks import run_ranks
from tiny_recipe import write_model


def test_straggler_is_told_from_the_rank_that_waits(tmp_path):
    script = Path(__file__).with_name("ranks_stragglers.py")
    out = run_ranks(script, 2, write_model(tmp_path / "model"), tmp_path / "run")
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").open()][1:]
    assert [line["straggler/rank"] for line in lines] == [1, 1, 1, 1]
    # Rank 0 waits in its update: its phase is as long, its own time is not.
    assert all(line["time/update"] > 1 for line in lines)
    assert all(line["straggler/wait_seconds"] > 0.5 for line in lines)
    assert out.count("has been the slowest in phase 'update' for 3 steps") == 1
    assert "step 3: rank 1 (host " in out
