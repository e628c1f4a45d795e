"""A run that stops and resumes takes the very steps of a run that did not stop."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import tiny_checkpoint as tiny
from ranks import run_ranks

SCRIPT = Path(__file__).with_name("ranks_checkpoint_resume.py")


@pytest.fixture(scope="module")
def resumed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[dict]]:
    """What every rank found, by case."""
    models = tiny.write_models(tmp_path_factory.mktemp("models"))
    found: dict[str, list[dict]] = {}
    for world in (1, 2):
        out = run_ranks(SCRIPT, world, models)
        line = next(line for line in out.splitlines() if line.startswith("RESULT "))
        found |= json.loads(line.removeprefix("RESULT "))
    return found


CASES = (
    "single",
    "single, bf16",
    "single, plain optimizer",
    "single, bf16, plain optimizer",
    "TP2",
    "TP2, sequence parallel",
    "PP2, tied",
    "PP2 x VPP2",
    "DP2",
    "DP2, bf16",
    "DP2, several buckets",
    "DP2, plain optimizer",
)


@pytest.mark.parametrize("case", CASES)
def test_resume_takes_the_uninterrupted_step_bitwise(resumed, case):
    for rank in resumed[case]:
        assert rank["differs"] == []
        straight, again = rank["grad norms"]
        assert straight == again > 0
        straight, again = rank["learning rates"]
        assert straight == again > 0
        # The comparison sees a difference where there is one.
        assert {"weights", "moments", "random"} <= set(rank["differs without the load"])


@pytest.mark.parametrize("case", CASES)
def test_resume_restores_the_trainer_state_on_every_rank(resumed, case):
    assert all(rank["state"] for rank in resumed[case])
