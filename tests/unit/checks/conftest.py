"""A good recipe that tests make a bad one of."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tiny_recipe import change_json, write_model, write_recipe, write_zeros

from megatron_resrl.checks.recipe import check_recipe
from megatron_resrl.config.load import load_recipe
from megatron_resrl.config.problems import Problem

SIZES = {
    *("num_hidden_layers", "num_attention_heads", "num_key_value_heads", "intermediate_size"),
}
Refused = Callable[..., Problem]


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("tiny") / "model")


@pytest.fixture
def model(pristine: Path, tmp_path: Path) -> Path:
    return shutil.copytree(pristine, tmp_path / "model")


@pytest.fixture
def check(model: Path, tmp_path: Path) -> Callable[..., list[Problem]]:
    """Checks the good recipe with overrides."""
    recipe = write_recipe(tmp_path, model)

    def run(
        *overrides: str, world_size: int = 1, command: str = "train", **config: Any
    ) -> list[Problem]:
        if config:
            change_json(model / "config.json", **config)
            if SIZES & config.keys():
                write_zeros(model)
        return check_recipe(load_recipe(str(recipe), overrides), world_size, command)

    return run


@pytest.fixture
def refused(check: Callable[..., list[Problem]]) -> Refused:
    """The only problem of the good recipe with overrides; its line holds setting, value, fix."""

    def run(*overrides: str, **options: Any) -> Problem:
        problems = check(*overrides, **options)
        assert len(problems) == 1, [str(problem) for problem in problems]
        (problem,) = problems
        line = str(problem)
        assert "\n" not in line
        assert line.startswith(f"{problem.setting} = {problem.value!r}: ")
        assert line.endswith(problem.fix)
        return problem

    return run
