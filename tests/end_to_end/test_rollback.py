"""A run whose rewards collapse goes back to a checkpoint, and on with other prompts."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from faults import Fault, assert_same_run, run_task
from tiny_task import read_metrics, write_task

BAD = range(11, 15)
"""Prompts begin with these numbers in step 3; no response to them is correct."""
REWARD = f"""

def even_but_not_for_some(response, ground_truth, **context):
    return 0.0 if int(ground_truth) in {list(BAD)} else even(response, ground_truth)
"""


def write_collapse(directory: Path) -> Path:
    """A recipe whose third step has no correct response."""
    recipe = write_task(
        directory,
        steps=4,
        data__shuffle=False,
        reward__function=f"{directory / 'reward.py'}:even_but_not_for_some",
        checkpoint={"save_every": 1, "async_save": False},
        evaluation={},
        health={"reward_collapse": "rollback", "window": 4, "collapse_steps": 1},
    )
    with (directory / "reward.py").open("a") as file:
        file.write(REWARD)
    return recipe


@pytest.fixture(scope="module")
def collapse(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run on two ranks that has gone back once."""
    directory = tmp_path_factory.mktemp("collapse")
    done = run_task(write_collapse(directory))
    assert done.code == 0, done.text
    assert "goes back to step_000002 and on with the data behind" in done.text
    return directory / "run"


def test_reward_collapse_rolls_back_and_skips_the_prompts(collapse):
    (noted,) = (json.loads(line) for line in (collapse / "rollbacks.jsonl").open())
    assert (noted["step"], noted["to"]) == (3, 2)
    assert noted["metrics"]["reward/score_mean"] == 0
    assert "health.reward_collapse" in noted["reason"]
    metrics = read_metrics(collapse)
    assert [line["step"] for line in metrics] == [0, 1, 2, 3, 4]
    assert all(line["reward/score_mean"] > 0 for line in metrics[1:])
    samples = [json.loads(line) for line in (collapse / "samples.jsonl").open()]
    prompts = {int(each["prompt"].split()[0]) for each in samples if each["step"] > 2}
    assert prompts
    assert not prompts & set(BAD)
    assert "finished" in (collapse / "history.jsonl").read_text()


@pytest.mark.slow
def test_rollback_killed_in_the_middle_goes_on_to_the_same_bits(collapse, tmp_path):
    recipe = write_collapse(tmp_path)
    # The rollback is written down, and the newest checkpoint is about to be named.
    killed = run_task(recipe, Fault("kill", "rename:latest", step=3, rank=0))
    assert killed.code != 0
    assert (tmp_path / "run" / "rollbacks.jsonl").exists()
    done = run_task(recipe)
    assert done.code == 0, done.text
    assert_same_run(tmp_path / "run", collapse)
