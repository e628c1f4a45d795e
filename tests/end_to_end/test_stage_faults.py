"""Pretraining and fine-tuning on two ranks that are killed, and what a restart makes of them.

    pytest tests/end_to_end/test_stage_faults.py -m faults

test_faults.py breaks reinforcement learning in all ways; the session is the same in all stages.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from faults import Fault, assert_same_run, run_task
from tiny_chat import write_chat_model, write_chat_task
from tiny_corpus import write_pretraining

pytestmark = pytest.mark.faults

CHECKPOINT = {"save_every": 1, "async_save": False}
"""Written while training waits, so that it is known what a fault finds."""


def _pretraining(directory: Path) -> Path:
    changes = {f"checkpoint__{name}": value for name, value in CHECKPOINT.items()}
    return write_pretraining(directory, **changes)


def _fine_tuning(directory: Path) -> Path:
    model = write_chat_model(directory / "model")
    return write_chat_task(directory, model={"path": str(model)}, checkpoint=CHECKPOINT)


WRITERS: dict[str, Callable[[Path], Path]] = {"pretrain": _pretraining, "sft": _fine_tuning}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Recipes of stages that have run to their end."""
    recipes: dict[str, Path] = {}

    def recipe_of(stage: str) -> Path:
        if stage not in recipes:
            directory = tmp_path_factory.mktemp(stage)
            recipes[stage] = WRITERS[stage](directory)
            ended = run_task(recipes[stage], stage=stage)
            assert ended.code == 0, ended.text
        return recipes[stage]

    return recipe_of


@pytest.mark.parametrize("at", ["phase:update", "write:__1_0.distcp"])
@pytest.mark.parametrize("stage", WRITERS)
def test_stage_killed_continues_to_the_same_bits(stage, at, undisturbed, tmp_path):
    whole = undisturbed(stage)
    # The same files, which a run compares with those of its checkpoint, and another run folder.
    run = tmp_path / "run"
    recipe = Path(shutil.copy(whole, tmp_path / "recipe.yaml"))
    elsewhere = f"--output_dir={run}"
    ended = run_task(recipe, Fault("kill", at, rank=1), elsewhere, stage=stage)
    assert ended.first_rank_code() == -9, ended.text
    assert "rank 1 did not answer" in ended.text
    assert not (run / "hf").exists()
    restarted = run_task(recipe, None, elsewhere, stage=stage)
    assert restarted.code == 0, restarted.text
    assert "resumed after step 2" in restarted.text
    assert_same_run(run, whole.parent / "run")
