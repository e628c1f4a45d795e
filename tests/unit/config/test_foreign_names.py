"""Names of other trainers lead to ours, and the page about them knows the schema."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from megatron_resrl.config.foreign_names import ABSENT, MEANT
from megatron_resrl.config.load import read_recipe
from megatron_resrl.config.recipe_schema import schema_of
from megatron_resrl.config.schema import Recipe

PAGE = (Path(__file__).resolve().parents[3] / "docs" / "migrating.md").read_text(encoding="utf-8")
ROWS = [
    [cell.strip() for cell in line.strip("|").split("|")]
    for line in PAGE.partition("## Names")[2].splitlines()
    if line.startswith("|")
][2:]

SETTINGS, SECTIONS = schema_of(Recipe).settings, schema_of(Recipe).sections


def fix(name: str) -> str:
    _, (problem,) = read_recipe(None, [f"--{name}=1"])
    return problem.fix


def test_foreign_names_of_the_migrating_page_exist() -> None:
    named = {
        name.partition(":")[0] for row in ROWS for name in re.findall(r"`([a-z0-9_.]+)", row[-1])
    }
    settings = {name for name in named if "." in name and name.partition(".")[0] in SECTIONS}
    assert len(settings) > 40
    assert settings <= set(SETTINGS), settings - set(SETTINGS)


def test_foreign_names_of_the_page_are_all_answered() -> None:
    unknown = []
    for row in ROWS:
        for cell in row[1:-1]:
            for name in re.findall(r"`([a-z_.]+)`", cell):
                leaf = name.rpartition(".")[2]
                own = any(setting.rpartition(".")[2] == leaf for setting in SETTINGS)
                if leaf not in MEANT and leaf not in ABSENT and name not in ABSENT and not own:
                    unknown.append(name)
    assert not unknown


def test_foreign_names_map_to_ours_and_are_none_of_ours() -> None:
    assert {name for meant in MEANT.values() for name in meant.split(" and ")} <= set(SETTINGS)
    assert not (set(MEANT) & set(ABSENT))
    assert len(MEANT) + len(ABSENT) > 100


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("actor_rollout_ref.rollout.n", "use rollout.group_size"),
        ("trainer.total_epochs", "a run's length is counted in steps"),
        ("algorithm.kl_coef", "use algorithm.kl_coefficient;"),
        ("optimizer.learning_rate", "use optimizer.lr;"),
        ("model.name", "use model.path"),
        ("reward.weights", "use reward.functions"),
        ("rollout.stop", "use rollout.stop_token_ids"),
        ("beta", "use algorithm.kl_coefficient;"),
        ("kl_ctrl.kl_target", "the reference has the weights that the run began with"),
        ("resrl.split_groups", "it is gone: each data-parallel replica has whole groups"),
    ],
)
def test_foreign_name_is_answered_with_ours_or_what_is_missing(name: str, meant: str) -> None:
    assert fix(name).startswith(meant)
    assert fix(name).endswith("see docs/migrating.md")


@pytest.mark.parametrize(
    ("name", "fixed"),
    [
        ("optimizer.lrr", "did you mean optimizer.lr?"),
        ("optimzer.lr", "did you mean optimizer.lr?"),
        ("sead", "did you mean seed?"),
        ("optimizer.group_size", "did you mean rollout.group_size?"),
        ("group_size", "did you mean rollout.group_size?"),
        ("rollout.temprature", "did you mean rollout.temperature?"),
    ],
)
def test_foreign_name_that_is_misspelled_gets_the_one_meant(name: str, fixed: str) -> None:
    assert fix(name) == fixed


@pytest.mark.parametrize("name", ["evaluation.path", "logging.name", "rollout.frequency"])
def test_short_name_of_another_section_is_not_guessed(name: str) -> None:
    assert fix(name).startswith(f"{name.partition('.')[0]} has ")
