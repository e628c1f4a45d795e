"""One chain: reinforcement learning, its correct responses, fine-tuning on them, evaluation."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from ranks import run_command, run_ranks
from tiny_task import read_metrics, write_task

ROOT = Path(__file__).resolve().parents[2]


def run(*command: str) -> None:
    done = run_command(*command)
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def chain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with the runs `run` of `train` and `tuned` of `sft`, and the recording between."""
    folder = tmp_path_factory.mktemp("chain")
    recorded, correct = str(folder / "recorded"), str(folder / "correct.jsonl")
    recipe = write_task(folder, rollout__record=recorded, steps=1, evaluation__samples_per_prompt=1)
    run("train", str(recipe))
    tool = str(ROOT / "tools" / "correct_samples.py")
    run_ranks(tool, 1, "--recording", recorded, "--output", correct, "--per_prompt", 3)
    settings = {
        "output_dir": str(folder / "tuned"),
        "epochs": 3,
        "model": {"path": str(folder / "run")},
        "precision": {"params_dtype": "fp32"},
        "data": {"train_files": correct, "max_length": 32},
        "batch": {"global_batch_size": 2},
        "optimizer": {"lr": 1e-2, "lr_warmup_steps": 0},
        "logging": {"tensorboard": False, "progress_bar": False},
    }
    tuning = folder / "tuning.yaml"
    tuning.write_text(yaml.safe_dump(settings))
    run("check", str(tuning), "--stage", "sft")
    run("sft", str(tuning))
    return folder


def test_stages_learn_the_correct_responses_of_a_recording(chain):
    start, *lines = read_metrics(chain / "tuned")
    rows = (chain / "correct.jsonl").read_text().splitlines()
    assert start["step"] == 0
    assert len(lines) == -(-3 * len(rows) // 2)
    assert lines[-1]["loss"] < lines[0]["loss"]


def test_stages_are_evaluated_from_the_run_before(chain):
    output = str(chain / "evaluated")
    tuned = ("--model.path", str(chain / "tuned"), "--output_dir", output)
    run("eval", str(chain / "recipe.yaml"), *tuned)
    summary = json.loads((chain / "evaluated" / "evaluation.json").read_text())
    assert "heldout" in json.dumps(summary)


def test_stages_refuse_the_recipe_of_another_stage(chain):
    done = run_command("sft", chain / "recipe.yaml")
    assert done.returncode == 2
    assert "rollout = {" in done.stderr
    assert "it is a section of train, not of sft" in done.stderr
    assert "this looks like a recipe of train: run megatron-resrl train" in done.stderr
