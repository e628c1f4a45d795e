"""A good recipe has no problem; those of a bad one come in one error."""

from __future__ import annotations

import pytest
from tiny_recipe import write_recipe

from megatron_resrl.checks.recipe import require_valid
from megatron_resrl.config.load import load_recipe
from megatron_resrl.config.problems import RecipeError


def test_check_recipe_finds_nothing_in_a_good_recipe(check):
    assert check() == []
    assert check(command="eval") != []  # Only because it has no evaluation file.


def test_check_recipe_finds_nothing_in_good_layouts(check):
    tensor = ("--parallel.tensor_model_parallel_size=2", "--parallel.sequence_parallel=true")
    assert check(*tensor, world_size=2) == []
    # Two key-value heads are shared by four ranks.
    assert check("--parallel.tensor_model_parallel_size=4", world_size=4) == []
    assert check("--parallel.pipeline_model_parallel_size=2", world_size=4) == []
    virtual = "--parallel.virtual_pipeline_model_parallel_size=2"
    deep = check(
        "--parallel.pipeline_model_parallel_size=2", virtual, world_size=2, num_hidden_layers=4
    )
    assert deep == []


def test_require_valid_lists_all_problems_one_per_line(model, tmp_path):
    recipe = load_recipe(
        str(write_recipe(tmp_path, model)),
        [
            "--parallel.tensor_model_parallel_size=3",
            "--rollout.group_size=1",
            "--data.train_files=[]",
        ],
    )
    with pytest.raises(RecipeError) as error:
        require_valid(recipe, 4)
    lines = str(error.value).splitlines()
    assert lines[0] == f"{len(lines) - 1} problems in the recipe:"
    found = {problem.setting for problem in error.value.problems}
    assert found == {
        "world size",
        "parallel.tensor_model_parallel_size",
        "rollout.group_size",
        "data.train_files",
    }
