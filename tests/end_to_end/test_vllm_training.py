"""Training with a real vLLM server: in turn with it, one step ahead, and killed in between."""

from __future__ import annotations

from pathlib import Path

import pytest
from faults import Fault, run_task
from served_engine import vllm_python, write_served_model
from tiny_task import read_metrics, write_task

pytestmark = pytest.mark.vllm


def _task(directory: Path, **overrides: object) -> Path:
    settings = {"rollout__engine": "vllm", "rollout__placement": "disaggregated", "steps": 3}
    overrides = settings | {"vllm__python": vllm_python()[0], "evaluation__files": []} | overrides
    recipe = write_task(directory, **overrides)
    write_served_model(directory / "model")
    return recipe


@pytest.mark.slow
def test_vllm_training_resumes_with_finished_groups(tmp_path):
    recipe = _task(tmp_path, rollout__verify_weights=True, checkpoint__save_every=1)
    killed = run_task(recipe, Fault("kill", "phase:scoring", rank=0), ranks=1)
    assert killed.code == -9, killed.text
    done = run_task(recipe, ranks=1)
    assert done.code == 0, done.text
    assert "step 3, round 0: 4 of 4 groups were finished before" in done.text
    for line in read_metrics(tmp_path / "run")[1:]:
        # The same weights, other kernels: what the server was sent is what the trainer has.
        assert line["mismatch/log_prob_max"] < 1e-4
        assert line["rollout/staleness_max"] == 0
        assert line["sync/failed_servers"] == 0


@pytest.mark.setting("rollout.engine", "rollout.placement", "vllm.python")
def test_vllm_training_one_step_ahead_bounds_staleness(tmp_path):
    recipe = _task(tmp_path, rollout__max_staleness=1, correction__method="token_tis")
    done = run_task(recipe, ranks=1)
    assert done.code == 0, done.text
    steps = read_metrics(tmp_path / "run")[1:]
    assert steps[0]["rollout/staleness_max"] == 0
    assert [line["rollout/staleness_max"] for line in steps[1:]] == [1, 1]
    # Older weights drew these tokens, and the correction sees it.
    assert all(line["mismatch/log_prob_max"] > 1e-4 for line in steps[1:])
    assert all(line["correction/factor_mean"] > 0 for line in steps)
