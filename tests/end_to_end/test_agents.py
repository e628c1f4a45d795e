"""The examples with agents train for a few steps by the real command, on a CPU."""

from __future__ import annotations

import importlib.util
import json
import math
from pathlib import Path

import pytest
import sandboxes
from ranks import run_command, run_ranks
from tiny_task import read_metrics

EXAMPLES = Path(__file__).parents[2] / "examples" / "agents"
STEPS = 2
OPTIONS = {
    "textworld": "{{games: {}/games, quest_length: 1}}",
    "scienceworld": "{{step_limit: 30}}",
    "search": "{{documents: {}/documents.jsonl, top_k: 1}}",
}
"""Agent -> its options, with the folder of the test."""
OPENED = ("textworld", "scienceworld", "gymnasium")
"""Agents whose environment begins."""


@pytest.mark.parametrize(
    "agent",
    [
        *("python", "search", "gymnasium"),
        *(pytest.param(name, marks=pytest.mark.slow) for name in ("textworld", "scienceworld")),
    ],
)
def test_agent_of_an_example_trains_on_several_turns(tmp_path: Path, agent: str) -> None:
    if agent == "python":
        sandboxes.require_any()
    elif importlib.util.find_spec({"search": "bm25s"}.get(agent, agent)) is None:
        pytest.skip(f"needs {agent}: pip install 'megatron-resrl[{agent}]'")
    run_ranks(EXAMPLES / "prepare.py", 1, agent, "--directory", tmp_path)
    settings = {
        "--output_dir": tmp_path / "run",
        "--model.path": tmp_path / "tiny",
        "--data.train_files": f"[{tmp_path / 'questions.jsonl'}]",
        "--steps": STEPS,
        "--rollout.environment_processes": 2 if agent in OPENED else 0,
        "--rollout.environment_failure": "stop",
        "--logging.progress_bar": "false",
    }
    if agent in OPTIONS:
        settings["--rollout.environment_options"] = OPTIONS[agent].format(tmp_path)
    given = [word for pair in settings.items() for word in pair]
    done = run_command("train", EXAMPLES / agent / "recipe.yaml", *given, timeout=900)
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
    if agent in OPENED:
        rules = [json.loads(line)["prompt"] for line in (tmp_path / "questions.jsonl").open()]
        samples = [json.loads(line) for line in (tmp_path / "run" / "samples.jsonl").open()]
        for sample in samples:
            # The opening of the game is part of the prompt, behind the rules.
            (said,) = {sample["prompt"].partition(rule)[2] for rule in rules} - {""}
            assert said.split()[0] != "<|im_end|>"
