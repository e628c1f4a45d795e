"""Files of the recipe that the system does not give are told as the settings that name them."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from pathlib import Path

import pytest

from megatron_resrl.checks import recipe as checks
from megatron_resrl.checks.facts import Facts
from megatron_resrl.checks.named_paths import named_paths
from megatron_resrl.checks.recipe import inspect_recipe
from megatron_resrl.config.load import load_recipe
from megatron_resrl.config.problems import Problem
from megatron_resrl.config.schema import Recipe
from megatron_resrl.errors import SettingError


@pytest.fixture
def recipe() -> Recipe:
    return load_recipe(
        None,
        [
            "--output_dir=outputs/run",
            "--model.path=/models/tiny",
            "--data.train_files=[/data/a.jsonl, b.jsonl]",
            "--reward.function=/code/reward.py:score",
            "--algorithm.name=mine.py:RLOO",
        ],
    )


def failing(number: int, file: object) -> OSError:
    return OSError(number, "what the system says", file)


@pytest.mark.parametrize(
    ("file", "setting"),
    [
        ("/models/tiny/config.json", "model.path"),
        ("/data/a.jsonl", "data.train_files"),
        (Path("b.jsonl"), "data.train_files"),
        (Path("b.jsonl").absolute(), "data.train_files"),
        ("outputs/run/metrics.jsonl", "output_dir"),
        ("/code/reward.py", "reward.function"),
        ("mine.py", "algorithm.name"),
    ],
)
def test_named_paths_name_the_setting_of_a_file(recipe: Recipe, file: object, setting: str) -> None:
    with pytest.raises(SettingError) as caught, named_paths(recipe):
        raise failing(errno.EACCES, file)
    assert caught.value.setting == setting
    assert f"{file} cannot be used (what the system says)" in str(caught.value)


def test_named_paths_ask_for_room_on_a_full_disk(recipe: Recipe) -> None:
    with pytest.raises(SettingError, match="make room"), named_paths(recipe):
        raise failing(errno.ENOSPC, "outputs/run/samples.jsonl")


@pytest.mark.parametrize("file", [None, 3, "/etc/passwd", "/models/other/config.json", "math"])
def test_named_paths_leave_errors_of_other_files(recipe: Recipe, file: object) -> None:
    error = failing(errno.EACCES, file)
    with pytest.raises(OSError, match="what the system says") as caught, named_paths(recipe):
        raise error
    assert caught.value is error


def test_check_of_an_unreadable_file_is_a_problem_of_the_machine(
    recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unreadable(facts: Facts) -> Iterator[Problem]:
        raise failing(errno.EACCES, "/models/tiny/tokenizer.json")
        yield

    monkeypatch.setitem(checks.CHECKS, "eval", (unreadable,))
    found = [each for each in inspect_recipe(recipe, 1, "eval") if "tokenizer.json" in str(each)]
    assert [(each.setting, each.kind) for each in found] == [("model.path", "machine")]
