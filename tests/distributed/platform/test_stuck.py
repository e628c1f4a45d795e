"""A rank whose main thread is stuck outside of Python is named and ended."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from ranks import run_ranks

SCRIPT = Path(__file__).with_name("ranks_stuck.py")


def test_watch_ends_a_thread_stuck_in_c_not_one_that_waits():
    with pytest.raises(AssertionError) as failure:
        run_ranks(SCRIPT, 2, timeout=80)
    said = str(failure.value)
    # Rank 1 ends first, as a lost rank does; the sleep would take longer than the test.
    assert re.search(r"exited \[(-15|0|None), 2\]", said)
    assert "local rank 1), step 7: this rank has waited for another rank" in said
    assert "parallel.timeout_minutes" in said
    assert "in main (" in said
    assert "ranks_stuck.py:" in said
    assert "rank 0 did not answer, though its process runs: last seen entering phase 'rollout'" in (
        said.replace("\\n", "\n")
    )
    assert "phase 'rollout', rank 0" not in said
