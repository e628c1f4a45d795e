"""The examples with agents train for a few steps by the real command, on a CPU."""

from __future__ import annotations

import importlib.util
import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
from tiny_task import read_metrics

EXAMPLES = Path(__file__).parents[2] / "examples" / "agents"
STEPS = 2


@pytest.mark.slow
@pytest.mark.parametrize("agent", ["textworld", "scienceworld"])
def test_agent_of_an_example_trains_on_several_turns(tmp_path: Path, agent: str) -> None:
    if importlib.util.find_spec(agent) is None:
        pytest.skip(f"needs {agent}: pip install 'megatron-resrl[{agent}]'")
    prepare = [sys.executable, EXAMPLES / "prepare.py", agent, "--directory", tmp_path]
    subprocess.run(prepare, check=True, timeout=600, capture_output=True)
    options = {"textworld": f"{{games: {tmp_path / 'games'}, quest_length: 1}}"}
    command = [sys.executable, "-m", "megatron_resrl", "train", EXAMPLES / agent / "recipe.yaml"]
    settings = {
        "--output_dir": tmp_path / "run",
        "--model.path": tmp_path / "tiny",
        "--data.train_files": f"[{tmp_path / 'questions.jsonl'}]",
        "--steps": STEPS,
        "--rollout.environment_processes": 2,
        "--rollout.environment_failure": "stop",
        "--rollout.environment_options": options.get(agent, "{step_limit: 30}"),
        "--logging.progress_bar": "false",
    }
    given = [str(word) for pair in settings.items() for word in pair]
    done = subprocess.run(
        [*command, *given], capture_output=True, text=True, timeout=900, check=False
    )
    assert done.returncode == 0, done.stderr
    steps = [line for line in read_metrics(tmp_path / "run") if "episode/turns_mean" in line]
    assert len(steps) == STEPS
    for line in steps:
        assert line["episode/turns_mean"] > 1
        assert line["episode/failed"] == 0
        assert 0 <= line["reward/mean"] <= 1
    # Where all episodes of every group score alike, a step has no loss.
    for line in (line for line in steps if "loss" in line):
        assert math.isfinite(line["loss"])
        assert line["mismatch/log_prob_max"] < 1e-3
    samples = [json.loads(line) for line in (tmp_path / "run" / "samples.jsonl").open()]
    # The opening of the game is part of the prompt.
    assert all(len(sample["prompt"]) > 150 for sample in samples)
