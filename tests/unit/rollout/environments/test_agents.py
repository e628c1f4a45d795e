"""Agents in games of other packages, which are refused where those are not installed."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

from megatron_resrl.data.records import PromptRecord
from megatron_resrl.errors import SettingError
from megatron_resrl.rollout.environments.registry import get_environment


def record(**extra: object) -> PromptRecord:
    return PromptRecord(0, [{"role": "user", "content": "play"}], "", "test", extra)


@pytest.mark.parametrize(
    ("name", "module", "options"),
    [
        ("alfworld", "alfworld", {}),
        ("gymnasium", "gymnasium", {"id": "FrozenLake-v1"}),
        ("openenv", "websockets", {"url": "http://127.0.0.1:1"}),
        ("scienceworld", "scienceworld", {}),
        ("textworld", "textworld", {}),
        ("verifiers", "verifiers", {"id": "wordle"}),
    ],
)
def test_get_environment_says_which_package_is_missing(
    monkeypatch: pytest.MonkeyPatch, name: str, module: str, options: dict
) -> None:
    monkeypatch.setitem(sys.modules, module, None)  # An import of it fails.
    said = rf"rollout\.environment = '{name}'.*{module}\S* is not installed.*\[{name}\]"
    with pytest.raises(SettingError, match=said):
        get_environment(name, options)


@pytest.mark.slow
def test_text_world_game_scores_its_quest(tmp_path: Path) -> None:
    textworld = pytest.importorskip("textworld", reason="megatron-resrl[textworld]")
    make = get_environment("textworld", {"games": str(tmp_path), "quest_length": 2})
    game, other = make(), make()
    opening = game.reset(record(seed=3), (0,))
    assert opening
    assert other.reset(record(seed=3), (1,)) == opening
    file = tmp_path / "rooms2_objects4_quest2_seed3" / "game.z8"
    state = textworld.start(str(file), textworld.EnvInfos(policy_commands=True)).reset()
    look = game.step("look")
    assert (look.done, look.score) == (False, 0.0)
    assert ">" not in look.text
    said = [game.step(command) for command in state.policy_commands]
    assert [each.done for each in said] == [False] * (len(said) - 1) + [True]
    assert said[-1].score == 1.0
    assert "The End" in said[-1].text
    # A file of the row's is played, too.
    assert make().reset(record(game=str(file)), (0,)) == opening
    with pytest.raises(ValueError, match="there is no such file"):
        make().reset(record(game="missing.z8"), (0,))
    game.close()
    other.close()


@pytest.mark.slow
def test_text_world_game_is_a_matter_of_the_seed(tmp_path: Path) -> None:
    pytest.importorskip("textworld", reason="megatron-resrl[textworld]")
    program = (
        "import sys\n"
        "from megatron_resrl.data.records import PromptRecord\n"
        "from megatron_resrl.rollout.environments.textworld_game import TextWorldGame\n"
        "record = PromptRecord(0, [], '', 'test', {'seed': 5})\n"
        "print(TextWorldGame(sys.argv[1]).reset(record, (0,)))\n"
    )
    made = set()
    for number in range(2):
        environment = os.environ | {"PYTHONHASHSEED": str(number)}
        command = [sys.executable, "-c", program, str(tmp_path / str(number))]
        done = subprocess.run(command, check=True, capture_output=True, env=environment)
        made.add(hashlib.sha256(done.stdout).hexdigest())
    assert len(made) == 1


@pytest.mark.slow
def test_science_world_game_scores_as_its_package() -> None:
    package = pytest.importorskip("scienceworld", reason="megatron-resrl[scienceworld]")
    game = get_environment("scienceworld", {"task": "find-plant"})()
    opening = game.reset(record(variation=3), (0,))
    assert opening is not None
    assert opening.startswith("Task Description:\nYour task is to find a(n) plant.")
    theirs = package.ScienceWorldEnv("")
    theirs.load("find-plant", 3, "easy", generateGoldPath=True)
    theirs.reset()
    observation = None
    for command in theirs.get_gold_action_sequence():
        text, _, done, info = theirs.step(command)
        observation = game.step(command)
        # Every simulator lists what is in a room in an order of its own.
        assert sorted(observation.text.split()) == sorted(text.split())
        assert observation.done == done
        assert observation.score == pytest.approx(max(0, info["score"]) / 100)
    assert observation is not None
    assert (observation.done, observation.score) == (True, 1.0)
    game.close()
    theirs.close()
    # The simulator is used again; a wrong focus is scored -100 by the package.
    assert game.reset(record(variation=3), (0,)) == opening
    for row, said in (({"task": "fly"}, "give one of boil"), ({"variation": 9999}, "has 0 to")):
        with pytest.raises(ValueError, match=said):
            game.reset(record(**row), (0,))
