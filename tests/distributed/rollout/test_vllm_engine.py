"""All ranks take part in what only rank 0 sees: responses, restarts, errors."""

from __future__ import annotations

from pathlib import Path

import pytest
from ranks import run_ranks
from served_engine import write_served_model


@pytest.mark.vllm
@pytest.mark.slow
def test_vllm_engine_keeps_ranks_alike_through_a_restart(tmp_path):
    model = write_served_model(tmp_path / "model")
    script = Path(__file__).parent / "ranks_vllm_engine.py"
    out = run_ranks(script, 2, model, tmp_path / "run")
    assert "rank 0 done" in out
    assert "rank 1 done" in out


def test_fleet_orders_servers_of_other_nodes(tmp_path):
    model = write_served_model(tmp_path / "model")
    script = Path(__file__).parent / "ranks_fleet.py"
    ends = tmp_path / "ends"
    ends.write_text("#!/bin/sh\necho no room; exit 3\n")
    ends.chmod(0o755)
    out = run_ranks(script, 2, model, tmp_path / "run", ends)
    assert "rank 0 done" in out
    assert "rank 1 done" in out
