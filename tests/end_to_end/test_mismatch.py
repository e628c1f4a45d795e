"""Training on samples of a truncated distribution, and the gate that ends a run."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from ranks import run_command
from tiny_task import read_metrics, write_task


def _train(recipe: Path) -> subprocess.CompletedProcess:
    return run_command("train", recipe)


@pytest.mark.setting("rollout.top_p", "correction.method")
def test_mismatch_of_truncation_is_corrected_and_logged(tmp_path):
    done = _train(write_task(tmp_path, steps=2, rollout__top_p=0.9, correction__method="token_tis"))
    assert done.returncode == 0, done.stderr
    for line in read_metrics(tmp_path / "run")[1:]:
        # Every ratio is the mass of a nucleus, between top_p and 1.
        assert 0.9 < line["correction/factor_mean"] < 0.99
        assert line["correction/clipped"] == 0
        assert 0.01 < line["mismatch/log_prob_mean"] < line["mismatch/log_prob_max"] < 0.106
        assert 0 < line["mismatch/probability_mean"] < line["mismatch/probability_max"] < 0.1
        assert 0 < line["mismatch/kl"] < 0.01
        assert 0.99 < line["mismatch/ess"] < 1
        assert 0.9 < line["mismatch/ess_sequence"] < 1


def test_mismatch_of_truncation_without_correction_is_refused(tmp_path):
    done = _train(write_task(tmp_path, rollout__top_p=0.9))
    assert done.returncode == 2
    assert "rollout.top_p" in done.stderr
    assert "correction.method to token_tis" in done.stderr
    assert not (tmp_path / "run").exists()


@pytest.mark.setting("correction.stop_kl")
def test_mismatch_above_stop_kl_ends_the_run_before_the_update(tmp_path):
    gates = {"correction__stop_kl": 1e-5, "correction__warn_kl": 1e-6}
    done = _train(write_task(tmp_path, rollout__top_p=0.9, correction__method="token_tis", **gates))
    assert done.returncode == 2, done.stderr
    assert "step 1: engine and trainer differ by mismatch/kl = " in done.stderr
    assert "above correction.stop_kl = 1e-05" in done.stderr
    assert [line["step"] for line in read_metrics(tmp_path / "run")] == [0]
    assert not list((tmp_path / "run").glob("checkpoints/step_*"))
