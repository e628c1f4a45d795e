"""The examples with agents train for a few steps by the real command, on a CPU."""

from __future__ import annotations

import importlib.util
import itertools
import json
import math
import os
import shutil
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
import sandboxes
from openenv_servers import openenv_server
from ranks import ended_ranks, run_command, run_ranks
from tiny_alfworld import write_games
from tiny_task import read_metrics

from megatron_resrl.rollout.environments.bfcl_conversation import questions

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples" / "agents"
STEPS = 2
OPTIONS = {
    "alfworld": "{{data: {}/games, step_limit: 12}}",
    "webshop": "{{options: {{num_products: 502}}}}",
    "textworld": "{{games: {}/games, quest_length: 1}}",
    "scienceworld": "{{step_limit: 30}}",
    "search": "{{documents: {}/documents.jsonl, top_k: 1}}",
}
"""Agent -> its options, with the folder of the test."""
OPENED = ("alfworld", "webshop", "textworld", "scienceworld", "gymnasium", "openenv")
"""Agents whose environment begins."""
IN_PROCESSES = ("alfworld", "webshop", "textworld", "scienceworld", "gymnasium")
SLOW = ("alfworld", "textworld", "scienceworld", "openenv", "verifiers")


def what_it_needs(agent: str, folder: Path, at_end: ExitStack) -> tuple[str, dict[str, str]]:
    """Options of the environment ("": the recipe's) and variables; skips without its package."""
    options, variables = OPTIONS.get(agent, "").format(folder), {}
    if agent == "python":
        sandboxes.require_any()
    elif agent == "webshop":
        # No registry has its package.
        (folder / "web_agent_site").mkdir()
        (folder / "web_agent_site" / "__init__.py").touch()
        shutil.copy(ROOT / "tests" / "small_webshop.py", folder / "web_agent_site" / "envs.py")
        variables["PYTHONPATH"] = str(folder)
    else:
        package = {"search": "bm25s", "openenv": "websockets"}.get(agent, agent)
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"needs {package}: pip install 'megatron-resrl[{agent}]'")
    if agent == "alfworld":
        write_games(folder / "games", {"train": 3})
    if agent == "openenv":
        url = at_end.enter_context(openenv_server(episodes=64))
        options = f"{{url: '{url}', observation_key: text, action_pattern: '([0-7])'}}"
    if agent == "verifiers":
        path = [str(EXAMPLES / agent), *filter(None, [os.environ.get("PYTHONPATH")])]
        variables["PYTHONPATH"] = os.pathsep.join(path)
    return options, variables


@pytest.fixture
def at_end() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


@pytest.mark.parametrize(
    "agent",
    [
        *("python", "search", "gymnasium", "webshop"),
        *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW),
    ],
)
def test_agent_of_an_example_trains_on_several_turns(
    tmp_path: Path, agent: str, at_end: ExitStack
) -> None:
    options, variables = what_it_needs(agent, tmp_path, at_end)
    run_ranks(EXAMPLES / "prepare.py", 1, agent, "--directory", tmp_path)
    if agent == "verifiers":
        script = ROOT / "tools" / "verifiers_questions.py"
        given = ("guess-number", "--output", tmp_path / "questions.jsonl")
        codes, _, said = ended_ranks(script, 1, *given, environment=variables)
        assert codes == [0], said
    settings = {
        "--output_dir": tmp_path / "run",
        "--model.path": tmp_path / "tiny",
        "--data.train_files": f"[{tmp_path / 'questions.jsonl'}]",
        "--steps": STEPS,
        "--rollout.environment_processes": 2 if agent in IN_PROCESSES else 0,
        "--rollout.environment_failure": "stop",
        "--logging.progress_bar": "false",
    }
    if options:
        settings["--rollout.environment_options"] = options
    given = [word for pair in settings.items() for word in pair]
    recipe = EXAMPLES / agent / "recipe.yaml"
    done = run_command("train", recipe, *given, timeout=900, environment=variables)
    assert done.returncode == 0, done.stderr
    steps = [line for line in read_metrics(tmp_path / "run") if "episode/turns_mean" in line]
    assert len(steps) == STEPS
    for line in steps:
        assert line["episode/turns_mean"] > 1
        assert line["episode/failed"] == 0
        # The OpenEnv server takes an eighth for each of four wrong guesses.
        assert (-0.5 if agent == "openenv" else 0) <= line["reward/mean"] <= 1
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


@pytest.mark.slow
def test_bfcl_conversations_are_evaluated(tmp_path: Path) -> None:
    pytest.importorskip("bfcl_eval", reason="pip install --no-deps bfcl-eval==2026.3.23")
    run_ranks(EXAMPLES / "prepare.py", 1, "openenv", "--directory", tmp_path)
    rows = list(itertools.islice(questions("multi_turn_base"), 3))
    for row in rows:
        # The tiny model has no room for hundreds of functions.
        row["prompt"] = row["prompt"][1:]
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (tmp_path / "bfcl_multi_turn.jsonl").write_text(lines)
    settings = {
        "--output_dir": tmp_path / "run",
        "--model.path": tmp_path / "tiny",
        "--evaluation.suites": "[bfcl_multi_turn]",
        "--evaluation.suites_dir": tmp_path,
        "--rollout.environment": "bfcl",
        "--rollout.environment_options": "{score: share}",
        "--data.max_prompt_length": 128,
    }
    given = [word for pair in settings.items() for word in pair]
    done = run_command("eval", EXAMPLES / "openenv" / "recipe.yaml", *given)
    assert done.returncode == 0, done.stderr
    (file,) = (tmp_path / "run" / "evaluation").rglob("*.jsonl")
    asked = [json.loads(line) for line in file.open()]
    # It says a number, which is no call: the first request is not done.
    assert [[each["score"] for each in row["responses"]] for row in asked] == [[0.0]] * 3
