"""Dropout masks differ between pipeline stages, and Python objects have a group of their own."""

from __future__ import annotations

import json
from pathlib import Path

from ranks import run_ranks


def test_seeds_differ_between_stages_not_between_replicas() -> None:
    output = run_ranks(Path(__file__).with_name("ranks_seeds.py"), 2)
    found = json.loads(next(line for line in output.splitlines() if '"found"' in line))["found"]
    (first, second), (one, other) = found["stages"], found["replicas"]
    assert first[0] != second[0]
    assert first[1] != second[1]
    assert one == other == first  # The first stage draws what a model in one piece does.
    assert found["object"] == {"from": 1}
    assert found["backend"] == "gloo"
