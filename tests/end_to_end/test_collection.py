"""Refilled, recorded and replayed rollouts, by the `train` command."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from faults import Fault, assert_same_run, run_task
from tiny_task import read_metrics, write_task

REFILL = {"rollout__dynamic_sampling": True, "rollout__group_size": 2, "rollout__max_refills": 2}


def _train(recipe: Path, *arguments: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "megatron_resrl", "train", str(recipe), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that refills groups and records them."""
    directory = tmp_path_factory.mktemp("recorded")
    recipe = write_task(directory, **REFILL)
    done = _train(recipe, "--rollout.record", str(directory / "record"))
    assert done.returncode == 0, done.stderr
    return directory


def test_groups_without_signal_are_replaced_and_their_number_stays(recorded):
    steps = read_metrics(recorded / "run")[1:]
    assert any(line["rollout/refill_rounds"] > 0 for line in steps)
    for line in steps:
        found = line["rollout/groups_generated"] - line["rollout/groups_without_signal"]
        assert line["rollout/groups_generated"] >= 4
        assert line["reward/groups_with_signal"] == min(4, found) / 4
        if found < 4:
            assert line["rollout/refill_rounds"] == 2
    state = next((recorded / "run" / "checkpoints").glob("step_000004*")) / "trainer.json"
    dealt = sum(int(line["rollout/groups_generated"]) for line in steps)
    assert json.loads(state.read_text())["sampler"]["consumed"] == dealt


def test_a_replayed_run_is_the_recorded_one_bit_by_bit(recorded, tmp_path):
    recipe = write_task(tmp_path, **REFILL)
    done = _train(recipe, "--rollout.replay", str(recorded / "record"))
    assert done.returncode == 0, done.stderr
    assert_same_run(tmp_path / "run", recorded / "run")
    files = sorted((recorded / "record" / "step_000001").glob("round_0_*.parquet"))
    assert pq.read_table(files[0])["prompt_ids"][0].as_py()


def test_another_algorithm_trains_on_a_recording(recorded, tmp_path):
    recipe = write_task(tmp_path, **REFILL, steps=2)
    replay = ["--rollout.replay", str(recorded / "record")]
    done = _train(recipe, *replay, "--algorithm.name", "grpo")
    assert done.returncode == 0, done.stderr


def test_a_recording_of_other_prompts_is_refused(recorded, tmp_path):
    recipe = write_task(tmp_path, **REFILL, seed=4)
    done = _train(recipe, "--rollout.replay", str(recorded / "record"))
    assert done.returncode == 2
    assert "answers another prompt than this run asks" in done.stderr
    assert "Traceback" not in done.stderr


def test_finished_groups_survive_a_kill_and_only_the_others_are_generated(recorded, tmp_path):
    recipe = write_task(tmp_path, **REFILL)
    killed = run_task(recipe, Fault("kill", "rename:group_000002.parquet", rank=0), ranks=1)
    assert killed.code == -9
    groups = tmp_path / "run" / "rollouts"
    kept = sorted(path.name for path in groups.glob("step_000003/*.parquet"))
    assert kept == ["round_0_group_000000.parquet", "round_0_group_000001.parquet"]
    done = run_task(recipe, ranks=1)
    assert done.code == 0, done.text
    assert_same_run(tmp_path / "run", recorded / "run")
