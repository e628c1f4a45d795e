"""Games of other packages: their commands, seeds, and scores."""

from __future__ import annotations

from pathlib import Path

import pytest

from megatron_resrl.data.records import PromptRecord
from megatron_resrl.rollout.environments.gymnasium_game import GymnasiumGame

GAMES = """\
class Counting:
    \"\"\"Adds up what is said; ends at 10.\"\"\"

    def __init__(self, start=0):
        self.start = start

    def reset(self, *, seed):
        self.total, self.closed = self.start + seed, False
        return f"begin with {self.total}", {}

    def step(self, action):
        self.total += int(action)
        return f"now {self.total}", 0.25, self.total >= 10, action == "0", {}

    def close(self):
        self.closed = True


def broken():
    raise LookupError("no board")

number = 3
"""


def record(**extra: object) -> PromptRecord:
    return PromptRecord(0, [{"role": "user", "content": "play"}], "", "test", extra)


@pytest.fixture
def games(tmp_path: Path) -> Path:
    path = tmp_path / "games.py"
    path.write_text(GAMES)
    return path


def test_gymnasium_game_adds_rewards_up(games: Path) -> None:
    game = GymnasiumGame(f"{games}:Counting", {"start": 2})
    assert game.reset(record(seed=3), (0,)) == "begin with 5"
    first, second = game.step("4"), game.step("2")
    assert (first.text, first.done, first.score) == ("now 9", False, 0.25)
    assert (second.text, second.done, second.score) == ("now 11", True, 0.5)
    assert game.reset(record(seed=0), (0,)) == "begin with 2"
    truncated = game.step("0")
    assert (truncated.done, truncated.score) == (True, 0.25)
    game.close()
    assert game._game.closed


def test_text_game_takes_the_last_action_of_a_turn(games: Path) -> None:
    game = GymnasiumGame(f"{games}:Counting", action_pattern="<action>(.*?)</action>")
    game.reset(record(seed=0), (0,))
    turn = "no <action>1</action>, rather <action> 3\n</action>."
    assert game.step(turn).text == "now 3"
    missed = game.step("I say 3")
    assert missed.text.startswith("there is no action in it")
    assert (missed.done, missed.score) == (False, 0.25)


def test_text_game_draws_its_seed_from_that_of_the_episode(games: Path) -> None:
    game = GymnasiumGame(f"{games}:Counting")
    openings = [game.reset(record(), seed) for seed in ((1, 2), (1, 2), (1, 3))]
    assert openings[0] == openings[1]
    assert openings[0] != openings[2]


@pytest.mark.parametrize("seed", [-1, 2**31, "7", True, 1.0])
def test_text_game_refuses_a_column_that_is_no_seed(games: Path, seed: object) -> None:
    with pytest.raises(ValueError, match="column seed of prompt 0 of test is"):
        GymnasiumGame(f"{games}:Counting").reset(record(seed=seed), (0,))


@pytest.mark.parametrize(
    ("id", "pattern", "said"),
    [
        ("{file}:Missing", None, "has no function or class 'Missing'"),
        ("{file}:number", None, "has no function or class 'number'"),
        ("missing.py:Game", None, "there is no file"),
        ("{file}:Counting", "(", "no regular expression"),
        ("{file}:Counting", "(a)(b)", "with one group"),
    ],
)
def test_gymnasium_game_refuses_options(
    games: Path, id: str, pattern: str | None, said: str
) -> None:
    with pytest.raises(ValueError, match=said):
        GymnasiumGame(id.format(file=games), action_pattern=pattern)


def test_gymnasium_game_plays_as_gymnasium_does() -> None:
    gymnasium = pytest.importorskip("gymnasium", reason="megatron-resrl[gymnasium]")
    theirs = gymnasium.make("FrozenLake-v1", desc=["SFF", "FFF", "FFG"], is_slippery=True)
    options = {"desc": ["SFF", "FFF", "FFG"], "is_slippery": True}
    ours = GymnasiumGame("FrozenLake-v1", options)
    for seed in range(3):
        observation, _ = theirs.reset(seed=seed)
        assert ours.reset(record(seed=seed), (0,)) == str(observation)
        total, ended = 0.0, False
        while not ended:
            observation, reward, terminated, truncated, _ = theirs.step(1)
            total, ended = total + reward, terminated or truncated
            said = ours.step("I go 0, no, 1")
            assert (said.text, said.score, said.done) == (str(observation), total, ended)
    refused = ours.step("left")
    assert refused.text == "say one of the actions range(0, 4)"


def test_gymnasium_game_refuses_a_name_that_is_not_registered() -> None:
    pytest.importorskip("gymnasium", reason="megatron-resrl[gymnasium]")
    with pytest.raises(ValueError, match="id is 'FrozenLak-v1'"):
        GymnasiumGame("FrozenLak-v1")
