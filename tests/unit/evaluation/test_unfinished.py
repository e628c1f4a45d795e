"""A stopped evaluation goes on with the questions that are left."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from tiny_task import write_task

from megatron_resrl.config.load import load_recipe
from megatron_resrl.evaluation.run import evaluate
from megatron_resrl.evaluation.unfinished import FOLDER

TESTS = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def recipe_path(tmp_path_factory):
    """16 questions with 4 responses; 2 run at once, so that a part has 2 questions."""
    folder = tmp_path_factory.mktemp("task")
    return write_task(
        folder, evaluation__samples_per_prompt=4, rollout__max_running_samples=2, steps=1
    )


@pytest.fixture(scope="module")
def stopped(recipe_path, tmp_path_factory):
    """What the command left when it was killed at the first group of its third part."""
    output = tmp_path_factory.mktemp("stopped")
    command = [
        *(sys.executable, str(TESTS / "faulty_train.py"), "--stage", "eval", "--action", "kill"),
        *("--at", "group:2/0", "--on_rank", "0"),
        *(str(recipe_path), "--output_dir", str(output)),
    ]
    path = [str(TESTS.parent), str(TESTS)]
    environment = dict(os.environ, OMP_NUM_THREADS="1", PYTHONPATH=os.pathsep.join(path))
    ended = subprocess.run(command, check=False, env=environment, cwd=TESTS.parent)
    assert ended.returncode == -signal.SIGKILL
    return output


def generated():
    """Set, part and place of the groups that are generated from now on."""
    groups = []
    sys.addaudithook(lambda event, args: event == "megatron_resrl.group" and groups.append(args))
    return groups


def parts(output):
    return sorted(path.name.split("_group")[0] for path in (output / FOLDER).rglob("*.parquet"))


def test_unfinished_evaluation_goes_on_to_the_same_numbers(recipe_path, stopped, tmp_path):
    recipe = load_recipe(str(recipe_path))
    whole = evaluate(replace(recipe, output_dir=str(tmp_path / "whole")))
    assert not (tmp_path / "whole" / FOLDER).exists()
    output = shutil.copytree(stopped, tmp_path / "killed")
    left = parts(output)
    assert left == ["round_0", "round_0", "round_1", "round_1", "round_2"]
    assert not (output / "evaluation.json").exists()
    seen = generated()
    assert evaluate(replace(recipe, output_dir=str(output))) == whole
    # Of the eight parts the first two were there; of the third one group was.
    assert sorted(seen) == [
        (0, 2, 1),
        *((0, part, place) for part in range(3, 8) for place in (0, 1)),
    ]
    assert not (output / FOLDER).exists()
    kept = [tmp_path / name / "evaluation" / "heldout.jsonl" for name in ("whole", "killed")]
    assert kept[0].read_text() == kept[1].read_text()


def test_unfinished_evaluation_with_other_settings_is_not_used(recipe_path, stopped, tmp_path):
    output = shutil.copytree(stopped, tmp_path / "killed")
    recipe = replace(load_recipe(str(recipe_path)), output_dir=str(output))
    seen = generated()
    evaluation = replace(recipe.evaluation, temperature=0.3)
    evaluate(replace(recipe, evaluation=evaluation))
    assert len(seen) == 16


def test_unfinished_evaluation_needs_keep_rollouts(recipe_path, tmp_path):
    recipe = replace(load_recipe(str(recipe_path)), output_dir=str(tmp_path))
    seen = generated()
    evaluate(replace(recipe, checkpoint=replace(recipe.checkpoint, keep_rollouts=False)))
    assert not seen
