"""A replica without prompts holds up nobody, also where parameters are gathered late."""

from __future__ import annotations

import json
from pathlib import Path

import tiny_checkpoint as tiny
from ranks import run_ranks


def test_idle_replica_takes_part_in_gathering_parameters(
    tmp_path: Path,
) -> None:
    models = tiny.write_models(tmp_path)
    script = Path(__file__).with_name("ranks_idle_replica.py")
    output = run_ranks(script, 2, models / "qwen3")
    first, second = (json.loads(line) for line in output.splitlines() if line.startswith("{"))
    assert first == second
    assert first["skipped"]
    assert first["applied"]
    assert len(first["first"]) == 4
    assert first["after_skipped"] == first["first"]
    assert len(first["after_applied"]) == 4
