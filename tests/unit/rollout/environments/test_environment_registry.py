"""Environments by name or file; whatever cannot be used is refused with what would be right."""

from __future__ import annotations

from pathlib import Path

import pytest

from megatron_resrl.checks.environments import ENVIRONMENT_CHECKS
from megatron_resrl.checks.facts import Facts
from megatron_resrl.config.schema import Recipe, RolloutConfig
from megatron_resrl.errors import InputError
from megatron_resrl.rollout.environments.number_game import NumberGame
from megatron_resrl.rollout.environments.registry import get_environment

MINE = """\
from megatron_resrl.rollout.environments.environment import Observation

class Echo:
    role = "user"

    def __init__(self, times=1):
        self.times = times

    def reset(self, record, seed):
        pass

    def step(self, action):
        return Observation(action * self.times)

class NoRole(Echo):
    role = "assistant"

class NoStep:
    role = "user"
    def reset(self, record, seed):
        pass
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "mine.py"
    path.write_text(MINE)
    return path


def test_get_environment_makes_one_for_every_episode(file: Path) -> None:
    make = get_environment(f"{file}:Echo", {"times": 2})
    assert make() is not make()
    assert make().step("ab").text == "abab"
    assert isinstance(get_environment("number_game", {"high": 5})(), NumberGame)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("calculater", {}, "did you mean 'calculator'"),
        ("missing.py:Echo", {}, "there is no file"),
        ("{file}:Ecco", {}, "its classes are Echo, NoRole, NoStep"),
        ("{file}:Echo", {"time": 2}, "its options are times"),
        ("{file}:NoRole", {}, "set the attribute role to 'tool' or 'user'"),
        ("{file}:NoStep", {}, "has no method 'step'"),
        ("number_game", {"low": 7, "high": 1}, "refuses them .*give low <= high"),
    ],
)
def test_get_environment_refuses_what_cannot_be_used(
    file: Path, name: str, options: dict, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        get_environment(name.format(file=file), options)


def problems(**settings: object) -> list[str]:
    facts = Facts(Recipe(rollout=RolloutConfig(**settings)), 1, {})
    return [str(problem) for check in ENVIRONMENT_CHECKS for problem in check(facts)]


def test_get_environment_is_asked_before_the_run() -> None:
    assert problems() == []
    assert problems(environment="calculator") == []
    (problem,) = problems(environment="calculator", environment_options={"digits": 3})
    assert problem.startswith("rollout.environment_options = {'digits': 3}: calculator cannot be ")
    (problem,) = problems(environment_options={"digits": 3})
    assert "rollout.environment is not set" in problem
