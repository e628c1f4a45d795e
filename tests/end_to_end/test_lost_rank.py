"""One rank of two is killed: the other names it, and the job ends by itself."""

from __future__ import annotations

from faults import Fault, run_task
from tiny_task import write_task


def test_lost_rank_is_named_with_phase_and_step(tmp_path):
    recipe = write_task(tmp_path, steps=2, evaluation__files=[])
    ended = run_task(recipe, Fault("kill", "phase:update", step=1, rank=1), timeout=600)
    assert ended.code == 1
    assert ended.first_rank_code() == -9
    assert "local rank 0), step 1: another rank did not take part" in ended.text
    assert "rank 1 did not answer: last seen entering phase 'update' of step 1" in ended.text
