"""A rank that waits in vain says in which phase, instead of hanging."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from ranks import run_ranks

from megatron_resrl.platform.phases import ANSWER_WITHIN_S


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[float, str]]:
    """Seconds until rank 0 gave up and what it was told, by phase."""
    script = Path(__file__).with_name("ranks_named_phase.py")
    output = run_ranks(script, 2, tmp_path_factory.mktemp("ranks"))
    lines = [line.split("|") for line in output.splitlines() if line.count("|") == 2]
    return {phase: (float(seconds), message) for phase, seconds, message in lines}


def test_named_phase_names_a_rank_that_does_not_arrive(
    told: dict[str, tuple[float, str]],
) -> None:
    seconds, message = told["rollout"]
    assert re.match(
        r"phase 'rollout', rank 0 \(host \S+, local rank 0\): another rank did not take part",
        message,
    )
    assert "parallel.timeout_minutes" in message
    assert "rank 1 did not answer, though its process runs" in message
    assert re.search(
        r"last seen entering phase 'scoring' of step 3, \d+ s ago \(host \S+, local rank 1\)",
        message,
    )
    # The time-out is 4 s; a busy machine may be late to notice.
    assert 3.5 < seconds < 20 + ANSWER_WITHIN_S


def test_named_phase_names_a_dead_rank_before_the_timeout(
    told: dict[str, tuple[float, str]],
) -> None:
    seconds, message = told["update"]
    assert re.match(r"phase 'update', rank 0 \(host \S+, local rank 0\): another rank", message)
    assert "onnection" in message
    assert re.search(
        r"rank 1 did not answer: last seen entering phase 'update' of step 3, \d+ s", message
    )
    assert seconds < 3.5 + ANSWER_WITHIN_S
