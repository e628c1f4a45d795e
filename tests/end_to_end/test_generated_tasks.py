"""The example with generated tasks trains for a few steps by the real command, and resumes."""

from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path

import pytest
from task_library import needs_reasoning_gym
from tiny_task import read_metrics

EXAMPLE = Path(__file__).parents[2] / "examples" / "reasoning_gym"


def train(folder: Path, run: str, steps: int) -> list[dict]:
    settings = {
        "--output_dir": folder / run,
        "--model.path": folder / "tiny",
        "--steps": steps,
        "--checkpoint.save_every": 1,
        "--logging.progress_bar": "false",
    }
    given = [str(word) for pair in settings.items() for word in pair]
    command = [sys.executable, "-m", "megatron_resrl", "train", str(EXAMPLE / "recipe.yaml")]
    done = subprocess.run(
        [*command, *given], capture_output=True, text=True, timeout=900, check=False
    )
    assert done.returncode == 0, done.stderr
    return read_metrics(folder / run)


@pytest.mark.slow
@needs_reasoning_gym
def test_generated_tasks_train_and_resume_to_the_same_numbers(tmp_path: Path) -> None:
    prepare = [sys.executable, EXAMPLE / "prepare.py", "--directory", tmp_path / "tiny"]
    subprocess.run(prepare, check=True, timeout=300, capture_output=True)
    whole = train(tmp_path, "whole", 2)
    steps = [line for line in whole if "reward/mean" in line]
    assert len(steps) == 2
    for line in steps:
        assert 0 < line["reward/mean"] < 1
        assert math.isfinite(line["loss"])
    (before, *_, after) = [line for line in whole if "eval/chain_sum/avg@4" in line]
    assert before["eval/chain_sum/questions"] == after["eval/chain_sum/questions"] == 16
    train(tmp_path, "halves", 1)
    resumed = [line for line in train(tmp_path, "halves", 2) if "reward/mean" in line]
    assert [line["reward/mean"] for line in resumed] == [line["reward/mean"] for line in steps]
    assert [line["loss"] for line in resumed] == [line["loss"] for line in steps]
