"""Finished rollouts come back exactly, on every rank, and only to the run that made them."""

from __future__ import annotations

import json
from pathlib import Path

from ranks import run_ranks


def test_rollout_log_returns_exact_groups_to_their_run_alone(tmp_path):
    out = run_ranks(Path(__file__).with_name("ranks_rollout_log.py"), 2, tmp_path)
    line = next(line for line in out.splitlines() if line.startswith("RESULT "))
    for seen in json.loads(line.removeprefix("RESULT ")):
        assert all(seen.values()), seen
