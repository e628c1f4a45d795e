"""A session serves a stage that has neither rollouts nor rewards."""

from __future__ import annotations

import json
import os
import signal
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from safetensors.torch import load_file
from tiny_recipe import write_model
from tiny_stage import NextTokenSettings, train
from tiny_task import read_metrics

from megatron_resrl.config.schema import (
    LoggingConfig,
    ModelConfig,
    OptimizerConfig,
    PrecisionConfig,
)
from megatron_resrl.errors import InputError
from megatron_resrl.training.interruption import Interrupted
from megatron_resrl.training.starting_point import NothingLeftToDo


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> NextTokenSettings:
    directory = tmp_path_factory.mktemp("stage")
    return NextTokenSettings(
        output_dir=str(directory / "straight"),
        steps=3,
        model=ModelConfig(str(write_model(directory / "model"))),
        precision=PrecisionConfig("fp32"),
        optimizer=OptimizerConfig(lr=1e-2, lr_warmup_steps=0),
        logging=LoggingConfig(tensorboard=False, progress_bar=False),
        sequences=((3, 4, 5, 6), (7, 8, 9), (10, 11, 12, 13, 14)),
    )


@pytest.fixture(scope="module")
def straight(settings: NextTokenSettings) -> Path:
    """A run of three steps without interruption."""
    train(settings)
    return Path(settings.output_dir)


def test_session_writes_down_a_stage_without_rollouts(straight, capfd):
    start, *steps = read_metrics(straight)
    assert start == {"step": 0}
    assert [line["step"] for line in steps] == [1, 2, 3]
    # A random model of 64 tokens: log 64 is 4.16.
    assert 4 < steps[0]["loss"] < 4.4
    assert steps[-1]["loss"] < steps[0]["loss"]
    times = json.loads((straight / "metrics.jsonl").read_text().split("\n")[1])
    assert times["time/update"] + times["time/other"] == pytest.approx(times["time/step"])
    assert (straight / "hf" / "model.safetensors").is_file()


def test_session_reports_the_memory_of_each_phase(straight):
    lines = [json.loads(line) for line in (straight / "metrics.jsonl").open()][1:]
    assert [line["memory/rank"] for line in lines] == [0, 0, 0]
    assert all(0 < line["memory/update_peak_bytes"] <= line["memory/peak_bytes"] for line in lines)


def test_session_interrupted_resumes_to_the_same_numbers(settings, straight, tmp_path, capfd):
    own = replace(settings, output_dir=str(tmp_path / "run"))
    armed = [True]

    def ask_to_end(event: str, arguments: tuple) -> None:
        if event == "megatron_resrl.step" and arguments[0] == 2 and armed:
            armed.clear()
            os.kill(os.getpid(), signal.SIGUSR1)

    sys.addaudithook(ask_to_end)
    with pytest.raises(Interrupted, match="after step 2, which is saved"):
        train(own)
    assert len(read_metrics(tmp_path / "run")) == 3
    assert not (tmp_path / "run" / "hf").exists()
    train(own)
    assert read_metrics(tmp_path / "run") == read_metrics(straight)
    weights, expected = (
        load_file(run / "hf" / "model.safetensors") for run in (tmp_path / "run", straight)
    )
    assert all((tensor == weights[name]).all() for name, tensor in expected.items())
    assert "step 3/3  loss " in capfd.readouterr().err


def test_session_refuses_another_run_and_knows_its_end(settings, straight):
    with pytest.raises(InputError, match="data: sequences"):
        train(replace(settings, sequences=settings.sequences[:2]))
    with pytest.raises(InputError, match="seed: 0 in the checkpoint, 1 now"):
        train(replace(settings, seed=1))
    with pytest.raises(NothingLeftToDo, match="all 3 steps are done"):
        train(settings)
