"""The `train` command: what it writes, that it resumes to the same bits, and its errors."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from faults import Fault, assert_same_run, run_task
from ranks import run_command
from safetensors.torch import load_file
from tiny_task import read_metrics, write_task

from megatron_resrl.checks.checkpoint import evaluation_metric_names
from megatron_resrl.config.schema import EvaluationConfig, Recipe, RewardConfig
from megatron_resrl.evaluation.sets import evaluation_sets


def _train(recipe: Path, *arguments: str) -> subprocess.CompletedProcess:
    return run_command("train", recipe, *arguments)


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of four steps without interruption."""
    directory = tmp_path_factory.mktemp("straight")
    done = _train(write_task(directory))
    assert done.returncode == 0, done.stderr
    return directory / "run"


def test_train_writes_metrics_samples_checkpoint_and_model(straight):
    metrics = read_metrics(straight)
    assert [line["step"] for line in metrics] == [0, 1, 2, 3, 4]
    evaluation = EvaluationConfig(("heldout.jsonl",), 0, 2)
    recipe = Recipe(evaluation=evaluation)
    sets = evaluation_sets(evaluation, recipe.data, RewardConfig("reward.py:even"), 8)
    logged = {f"eval/{name}" for name in evaluation_metric_names(sets)}
    assert logged == {name for name in metrics[0] if name.startswith("eval/")}
    assert logged < set(metrics[-1])
    for line in metrics[1:]:
        assert line["mismatch/log_prob_max"] < 1e-4  # the same weights, other kernels
        assert line["resrl/groups"] == 4
        assert line["update/applied"] == 1
    times = json.loads((straight / "metrics.jsonl").read_text().split("\n")[1])
    phases = ("rollout", "reward", "scoring", "subspace", "update", "sync", "other")
    assert sum(times[f"time/{name}"] for name in phases) == pytest.approx(times["time/step"])
    assert (straight / "samples.jsonl").read_text().count("\n") == 4 * 2
    assert (straight / "hf" / "config.json").is_file()
    assert (straight / "recipe.yaml").is_file()


def test_train_killed_resumes_to_the_same_bits(straight, tmp_path):
    recipe = write_task(tmp_path, checkpoint__async_save=False)
    run = tmp_path / "run"
    command = [sys.executable, "-m", "megatron_resrl", "train", recipe]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL, start_new_session=True)
    _wait_for_step(run, 3, process)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert not (run / "hf").exists()

    done = _train(recipe)
    assert done.returncode == 0, done.stderr
    assert "resumed after step 2" in done.stderr
    assert "subspace method" not in done.stderr  # that of the checkpoint, not measured again
    assert_same_run(run, straight)


@pytest.mark.setting("checkpoint.preemption_exit_code")
def test_train_interrupted_saves_and_resumes_to_the_same_bits(straight, tmp_path):
    recipe, run = write_task(tmp_path, checkpoint__preemption_exit_code=7), tmp_path / "run"
    ended = run_task(recipe, Fault("term", "phase:rollout", step=3, rank=0), ranks=1)
    assert ended.code == 7
    note = json.loads((run / "interrupted.json").read_text())
    assert note["step"] == 3
    assert note["checkpoint"] == str(run / "checkpoints" / "step_000003")
    assert f"SIGTERM: the run ended after step 3, which is saved in {run}" in ended.text
    assert not (run / "hf").exists()

    done = _train(recipe)
    assert done.returncode == 0, done.stderr
    assert "resumed after step 3" in done.stderr
    assert not (run / "interrupted.json").exists()
    assert_same_run(run, straight)


def _wait_for_step(run: Path, step: int, process: subprocess.Popen) -> None:
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline and process.poll() is None:
        metrics = run / "metrics.jsonl"
        if metrics.exists() and f'"step": {step},' in metrics.read_text():
            return
        time.sleep(0.02)
    raise AssertionError(f"the run did not reach step {step}; exit status {process.poll()}")


def test_step_whose_groups_all_agree_changes_nothing(tmp_path):
    recipe = write_task(tmp_path, steps=1, algorithm__name="grpo")
    done = _train(recipe, f"--reward.function={tmp_path / 'reward.py'}:always")
    assert done.returncode == 0, done.stderr
    assert "nothing to learn" in done.stderr
    metrics = read_metrics(tmp_path / "run")[-1]
    assert metrics["update/without_signal"] == 1
    assert metrics["rollout/nonzero_advantage_groups"] == 0
    before = load_file(tmp_path / "model" / "model.safetensors")
    after = load_file(tmp_path / "run" / "hf" / "model.safetensors")
    assert all((tensor == after[name]).all() for name, tensor in before.items())


def test_train_ends_before_step_1_at_an_unusable_answer(tmp_path):
    recipe = write_task(tmp_path, reward={"function": "math", "workers": 1})
    rows = [json.dumps({"prompt": "3", "answer": str(n)}) for n in range(110)]
    rows[104] = json.dumps({"prompt": "3", "answer": True})  # Beyond what checks read.
    (tmp_path / "train.jsonl").write_text("\n".join(rows))
    done = _train(recipe)
    assert done.returncode == 2
    assert f"{tmp_path / 'train.jsonl'}, line 105: the ground truth is True" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


def test_train_ends_with_the_error_of_a_reward_and_sample(tmp_path):
    done = _train(write_task(tmp_path), f"--reward.function={tmp_path / 'reward.py'}:broken")
    assert done.returncode == 2
    assert "KeyError: 'no such unit'" in done.stderr
    assert "response:" in done.stderr
    assert "ground truth:" in done.stderr


@pytest.mark.slow
@pytest.mark.setting("algorithm.kl_coefficient")
def test_train_resumes_with_its_start_as_the_reference(tmp_path):
    # A run evaluates at its end, too, which is step 2 for one of them.
    settings = {
        "algorithm__kl_coefficient": 0.5,
        "algorithm__updates_per_step": 2,
        "evaluation__every": 2,
    }
    for name in ("straight", "stopped"):
        recipe = write_task(tmp_path / name, **settings)
        for steps in (2, 4) if name == "stopped" else (4,):
            # The same length of the schedule for both.
            done = _train(recipe, f"--steps={steps}", "--optimizer.lr_decay_steps=4")
            assert done.returncode == 0, done.stderr
    assert "resumed after step 2" in done.stderr
    assert_same_run(tmp_path / "stopped" / "run", tmp_path / "straight" / "run")
    kl = [line["reference/kl"] for line in read_metrics(tmp_path / "stopped" / "run")[1:]]
    assert kl[0] < 1e-9 < 1e-4 < kl[2]
