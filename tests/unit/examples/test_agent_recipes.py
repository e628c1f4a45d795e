"""The paper's recipes with agents: their numbers, their questions, and what they need."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from megatron_resrl.checks.environments import _check_environment
from megatron_resrl.config.load import load_recipe
from megatron_resrl.config.schema import DataConfig, EvaluationConfig, RewardConfig
from megatron_resrl.config.schema_rollout import RolloutConfig
from megatron_resrl.evaluation.sets import resolve_sets
from megatron_resrl.evaluation.suites import SUITES

ROOT = Path(__file__).resolve().parents[3]
FOLDER = ROOT / "examples/paper/agents"


def prepare(*given: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, FOLDER / "prepare.py", *map(str, given)]
    path = {"PYTHONPATH": str(ROOT)}
    return subprocess.run(command, capture_output=True, text=True, check=False, env=path)


def rows_of(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.open()]


@pytest.mark.parametrize(("agent", "turns"), [("alfworld", 50), ("webshop", 15)])
def test_agent_recipe_has_the_public_numbers(agent: str, turns: int) -> None:
    recipe = load_recipe(FOLDER / agent / "recipe.yaml")
    rollout = recipe.rollout
    assert (rollout.prompts_per_step, rollout.group_size, recipe.steps) == (16, 8, 150)
    assert (rollout.environment, rollout.max_turns) == (agent, turns)
    assert recipe.evaluation.suites == (agent,)
    assert SUITES[agent].environment == agent
    assert (SUITES[agent].samples_per_prompt, SUITES[agent].temperature) == (1, 0.4)
    # Any score above 0 counts as correct.
    assert agent == "alfworld" or rollout.environment_options["score"] == "success"


def test_agent_questions_of_webshop_hold_the_test_out(tmp_path: Path) -> None:
    assert prepare("webshop", "--goals", 503, "--output", tmp_path).returncode == 0
    assert [row["goal"] for row in rows_of(tmp_path / "webshop_train.jsonl")] == [500, 501, 502]
    assert [row["goal"] for row in rows_of(tmp_path / "webshop.jsonl")] == list(range(500))
    evaluation = EvaluationConfig(suites=("webshop",), suites_dir=str(tmp_path))
    (found,), problems = resolve_sets(evaluation, DataConfig(), RewardConfig(), 4096)
    assert (found.environment, problems) == ("webshop", [])
    refused = prepare("webshop", "--goals", 500, "--output", tmp_path)
    assert refused.returncode == 2
    assert "give more than the 500 of the test" in refused.stderr


def test_agent_questions_of_alfworld_name_its_games(tmp_path: Path) -> None:
    games = tmp_path / "games"
    for path in ("train/a", "train/b", "valid_seen/c", "valid_unseen/d"):
        folder = games / "json_2.1.1" / path
        folder.mkdir(parents=True)
        (folder / "game.tw-pddl").write_text('{"solvable": true}')
    done = prepare("alfworld", "--games", games, "--output", tmp_path)
    assert done.returncode == 0, done.stderr
    named = [row["game"] for row in rows_of(tmp_path / "alfworld_train.jsonl")]
    assert named == [f"json_2.1.1/train/{trial}/game.tw-pddl" for trial in "ab"]
    (heldout,) = rows_of(tmp_path / "alfworld.jsonl")
    assert (games / heldout["game"]).is_file()


@pytest.mark.parametrize(
    ("agent", "module"), [("alfworld", "alfworld"), ("webshop", "web_agent_site")]
)
def test_agent_recipe_needs_a_package_of_the_machine(
    monkeypatch: pytest.MonkeyPatch, agent: str, module: str
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    (problem,) = _check_environment(RolloutConfig(environment=agent))
    assert (problem.setting, problem.value, problem.kind) == (
        "rollout.environment",
        agent,
        "machine",
    )
    assert "is not installed" in problem.problem
    (wrong,) = _check_environment(RolloutConfig(environment="chess"))
    assert wrong.kind == "recipe"
