"""Runs whose rewards collapse or whose loss rises go back to a checkpoint and take other data."""

from __future__ import annotations

import json
from pathlib import Path

import numpy
import pytest
from faults import Fault, assert_same_run, run_task
from tiny_chat import conversation, write_chat_model, write_chat_task
from tiny_corpus import LENGTH, VOCABULARY, write_pretraining
from tiny_task import read_metrics, write_task
from token_files import build

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


RISES = {"window": 4, "deviations": 0.5, "grad_norm_spike": "off"}
"""A loss above what is usual in four steps is a spike."""


def write_conversations(directory: Path, reaction: str, *, without_noise: bool = False) -> Path:
    """A recipe of fine-tuning whose sixth step has answers that no other predicts."""
    recipe = write_chat_task(
        directory,
        model={"path": str(write_chat_model(directory / "model"))},
        evaluation={"every": 0},
        checkpoint={"save_every": 1},
        health=RISES | {"loss_spike": reaction},
    )
    rows = [conversation(number % 20) for number in range(80)]
    for number in range(40, 48):
        noise = " ".join(str(3 + (7 * number + 11 * each) % 50) for each in range(5))
        rows[number]["messages"][1]["content"] = noise
    if without_noise:
        del rows[40:48]
    (directory / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return recipe


def test_loss_spike_in_fine_tuning_skips_its_data(tmp_path):
    losses = {}
    for name, reaction in (("spike", "rollback"), ("clean", "off")):
        (tmp_path / name).mkdir()
        recipe = write_conversations(tmp_path / name, reaction, without_noise=name == "clean")
        settings = ("--data.shuffle=false", "--steps=7")
        done = run_task(recipe, None, *settings, ranks=1, stage="sft")
        assert done.code == 0, done.text
        metrics = read_metrics(tmp_path / name / "run")
        losses[name] = [line["loss"] for line in metrics if "loss" in line]
    lines = (tmp_path / "spike" / "run" / "rollbacks.jsonl").read_text().splitlines()
    (noted,) = map(json.loads, lines)
    assert (noted["step"], noted["to"]) == (6, 5)
    assert "health.loss_spike" in noted["reason"]
    # To the bit what the same run gives where the data was never there.
    assert losses["spike"] == losses["clean"]


def write_text(directory: Path, reaction: str) -> Path:
    """A recipe of pretraining in which one document of 21 is noise."""
    draw = numpy.random.default_rng(1)
    counting = [[3 + (start + each) % 61 for each in range(LENGTH + 1)] for start in range(200)]
    text = []
    for first in range(0, 200, 20):
        noise = draw.integers(3, VOCABULARY, LENGTH + 1).tolist()
        text += [*counting[first : first + 20], noise]
    return write_pretraining(
        directory,
        steps=14,
        data__train_files=[str(build(directory / "mixed", text, VOCABULARY))],
        checkpoint={"save_every": 1},
        health=RISES | {"loss_spike": reaction},
    )


@pytest.mark.slow
def test_loss_spike_in_pretraining_skips_its_data(tmp_path):
    metrics = {}
    for reaction in ("warn", "rollback"):
        (tmp_path / reaction).mkdir()
        recipe = write_text(tmp_path / reaction, reaction)
        done = run_task(recipe, ranks=1, stage="pretrain")
        assert done.code == 0, done.text
        metrics[reaction] = [
            line for line in read_metrics(tmp_path / reaction / "run") if "loss" in line
        ]
    distances = [line.get("health/loss_deviations") or 0.0 for line in metrics["warn"]]
    spike = next(number for number, distance in enumerate(distances) if distance > 0.5)
    lines = (tmp_path / "rollback" / "run" / "rollbacks.jsonl").read_text().splitlines()
    noted = json.loads(lines[0])
    assert (noted["step"], noted["to"]) == (spike + 1, spike)
    warned, went_back = ([line["loss"] for line in each] for each in metrics.values())
    assert went_back[:spike] == warned[:spike]
    assert went_back[spike] != warned[spike]
    # Each rollback drops the four sequences of a step.
    consumed = 4 * LENGTH * (14 + len(lines))
    assert metrics["rollback"][-1]["consumed_tokens"] == consumed
