"""A run goes back to an older checkpoint and on with other data, also if it is killed then."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from safetensors.torch import load_file
from tiny_recipe import write_model
from tiny_stage import BATCH, NextTokenSettings, train
from tiny_task import read_metrics

from megatron_resrl.config.schema import (
    CheckpointConfig,
    LoggingConfig,
    ModelConfig,
    OptimizerConfig,
    PrecisionConfig,
)
from megatron_resrl.config.schema_health import HealthConfig
from megatron_resrl.data.sampler import PromptSampler
from megatron_resrl.errors import exit_status
from megatron_resrl.training.interruption import Interrupted
from megatron_resrl.training.rollbacks import (
    CannotRollBack,
    Rollback,
    choose_checkpoint,
    note_rollback,
    position_after,
    read_rollbacks,
)
from megatron_resrl.training.stage import StageState


def rollback(step: int, to: int) -> Rollback:
    return Rollback(step, to, "a spike", {"position": step}, {"seen": step}, {}, 0.0)


def test_choose_checkpoint_takes_the_newest_before_the_step():
    assert choose_checkpoint([2, 4, 6], 6, [], window=10) == 4
    assert choose_checkpoint([2, 4, 6], 2, [], window=10) is None


def test_choose_checkpoint_goes_further_back_the_second_time():
    past = [rollback(5, 4)]
    assert choose_checkpoint([2, 4], 6, past, window=10) == 2
    assert choose_checkpoint([4], 6, past, window=10) == 4
    # Long after, it is another spike.
    assert choose_checkpoint([2, 4, 14], 15, past, window=10) == 14


def test_position_after_is_that_of_the_dropped_steps():
    past = [rollback(5, 4), rollback(7, 4)]
    assert position_after(4, past) == StageState({"position": 7}, {"seen": 7})
    assert position_after(2, past) is None
    assert position_after(6, past) is None
    # The second one skips what the first one skipped: step 4 comes later in the data.
    past = [rollback(5, 4), rollback(7, 2)]
    assert position_after(2, past) == StageState({"position": 7}, {"seen": 7})
    assert position_after(4, past) is None


def test_rollbacks_are_read_in_the_order_of_their_notes(tmp_path):
    assert read_rollbacks(tmp_path) == []
    (tmp_path / "rollbacks.jsonl.new").write_text('{"step": 5, "t')  # Left by a killed run.
    for each in (rollback(5, 4), rollback(7, 2)):
        note_rollback(tmp_path, each)
    assert read_rollbacks(tmp_path) == [rollback(5, 4), rollback(7, 2)]


USUAL, ODD = (5, 6, 7, 8, 9), (40, 41, 42, 43, 44)


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> NextTokenSettings:
    """A run whose sequences are all alike, so that the model learns them at once."""
    directory = tmp_path_factory.mktemp("stage")
    return NextTokenSettings(
        output_dir=str(directory / "usual"),
        steps=8,
        model=ModelConfig(str(write_model(directory / "model"))),
        precision=PrecisionConfig("fp32"),
        optimizer=OptimizerConfig(lr=2e-2, lr_warmup_steps=0),
        checkpoint=CheckpointConfig(save_every=2, keep_last=3),
        health=HealthConfig(grad_norm_spike="off", window=4, deviations=2.0),
        logging=LoggingConfig(tensorboard=False, progress_bar=False),
        sequences=(USUAL,) * 30,
    )


@pytest.fixture(scope="module")
def usual(settings: NextTokenSettings) -> Path:
    """Its folder; nothing happens in it."""
    train(settings)
    return Path(settings.output_dir)


def with_odd_batches(
    settings: NextTokenSettings, run: Path, *numbers: int, reaction: str = "rollback", **health: int
) -> NextTokenSettings:
    """The same run, but that some batches, numbered from 1, have a sequence of another kind."""
    sampler = PromptSampler(len(settings.sequences), BATCH, settings.seed)
    batches = [sampler.next_batch() for _ in range(settings.steps + 2)]
    sequences = list(settings.sequences)
    for number in numbers:
        sequences[batches[number - 1][0]] = ODD
    return replace(
        settings,
        output_dir=str(run),
        sequences=tuple(sequences),
        health=replace(settings.health, loss_spike=reaction, **health),
    )


def fail_at(step: int, occurrence: int) -> None:
    """Ends a run with an exception when a step begins for the nth time."""
    left = [occurrence]

    def hook(event: str, arguments: tuple) -> None:
        if event == "megatron_resrl.step" and arguments[0] == step:
            left[0] -= 1
            if left[0] == 0:
                raise OSError("lost power")

    sys.addaudithook(hook)


def assert_same_training(run: Path, usual: Path) -> None:
    """Losses and weights are equal bit by bit."""
    losses = [[line.get("loss") for line in read_metrics(each)] for each in (run, usual)]
    assert losses[0] == losses[1]
    weights, expected = (load_file(each / "hf" / "model.safetensors") for each in (run, usual))
    assert all((tensor == weights[name]).all() for name, tensor in expected.items())


def test_spike_is_a_warning_by_default(settings, tmp_path, caplog):
    assert settings.health.loss_spike == "warn"
    train(with_odd_batches(settings, tmp_path, 7, 8, reaction="warn"))
    warnings = [text for text in caplog.messages if "health.loss_spike" in text]
    assert len(warnings) == 1  # Step 8 is above the others, too.
    assert warnings[0].startswith("step 7: loss is ")
    assert not (tmp_path / "rollbacks.jsonl").exists()
    assert [line["step"] for line in read_metrics(tmp_path)] == list(range(9))


def test_rollback_goes_on_behind_the_bad_data(settings, usual, tmp_path, caplog):
    own = with_odd_batches(settings, tmp_path, 7)
    train(own)
    assert_same_training(tmp_path, usual)
    (noted,) = read_rollbacks(tmp_path)
    assert (noted.step, noted.to) == (7, 6)
    assert noted.metrics["loss"] > 2 * read_metrics(tmp_path)[7]["loss"]
    assert "health.loss_spike" in noted.reason
    assert any("the run goes back to step_000006" in text for text in caplog.messages)
    assert [line.get("health/rollbacks") for line in read_metrics(tmp_path)[5:]] == [
        None,
        None,
        1.0,
        1.0,
    ]


def test_rollback_survives_the_end_of_its_process(settings, usual, tmp_path):
    own = with_odd_batches(settings, tmp_path, 7)
    fail_at(7, occurrence=2)
    with pytest.raises(OSError, match="lost power"):
        train(own)
    assert len(read_metrics(tmp_path)) == 7
    train(own)
    assert_same_training(tmp_path, usual)
    assert len(read_rollbacks(tmp_path)) == 1


@pytest.mark.setting("health.max_rollbacks")
def test_rollback_is_allowed_so_many_times(settings, usual, tmp_path, capfd):
    own = with_odd_batches(settings, tmp_path, 7, 8, max_rollbacks=1)
    with pytest.raises(CannotRollBack, match=r"step 7: loss is .* gone back 1 times") as caught:
        train(own)
    assert exit_status(caught.value) == 2
    train(replace(own, health=replace(own.health, max_rollbacks=2)))
    assert [(each.step, each.to) for each in read_rollbacks(tmp_path)] == [(7, 6), (7, 4)]
    assert_same_training(tmp_path, usual)


def test_rollback_needs_an_older_checkpoint(settings, tmp_path):
    own = with_odd_batches(settings, tmp_path, 7)
    with pytest.raises(CannotRollBack, match="no checkpoint before this step"):
        train(replace(own, checkpoint=CheckpointConfig(save_every=0)))


@pytest.mark.setting("time_budget")
def test_time_budget_ends_a_run_that_resumes(settings, usual, tmp_path):
    own = replace(settings, output_dir=str(tmp_path))
    with pytest.raises(Interrupted, match="time_budget: the run ended after step 1") as caught:
        train(replace(own, time_budget=0.001))
    assert caught.value.status == 0
    note = json.loads((tmp_path / "interrupted.json").read_text())
    assert (note["reason"], note["signal"], note["step"]) == ("time_budget", None, 1)
    train(replace(own, time_budget="1000-00:00"))
    assert_same_training(tmp_path, usual)
