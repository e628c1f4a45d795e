"""A model's directory, a checkpoint or a run may be named."""

from __future__ import annotations

from pathlib import Path

import pytest

from megatron_resrl.config.model_place import ModelPlace, find_model


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """The output of a run: two whole checkpoints, one that is being written, an exported model."""
    for step in (2, 10):
        checkpoint = tmp_path / "checkpoints" / f"step_{step:06d}"
        (checkpoint / "hf").mkdir(parents=True)
        (checkpoint / "hf" / "config.json").write_text("{}")
        (checkpoint / ".metadata").write_text("")
    (tmp_path / "checkpoints" / "step_000012.incomplete").mkdir()
    (tmp_path / "hf").mkdir()
    (tmp_path / "hf" / "config.json").write_text("{}")
    return tmp_path


def of_step(run: Path, step: int) -> ModelPlace:
    checkpoint = run / "checkpoints" / f"step_{step:06d}"
    return ModelPlace(checkpoint / "hf", checkpoint)


def test_model_place_is_the_directory_of_a_model(run: Path) -> None:
    assert find_model(run / "hf") == ModelPlace(run / "hf", run / "hf")
    assert find_model(run / "nowhere") == ModelPlace(run / "nowhere", run / "nowhere")


def test_model_place_is_below_a_checkpoint(run: Path) -> None:
    assert find_model(run / "checkpoints" / "step_000002") == of_step(run, 2)


@pytest.mark.parametrize("part", ["", "checkpoints"])
def test_model_place_is_the_newest_checkpoint_of_a_run(run: Path, part: str) -> None:
    assert find_model(run / part) == of_step(run, 10)
    (run / "checkpoints" / "latest").write_text("step_000002\n")
    assert find_model(str(run / part)) == of_step(run, 2)
    (run / "checkpoints" / "latest").write_text("step_000012")
    assert find_model(run / part) == of_step(run, 10)


def test_model_place_is_the_exported_model_of_a_run(run: Path) -> None:
    (run / "checkpoints").rename(run / "elsewhere")
    assert find_model(run) == ModelPlace(run / "hf", run / "hf")
