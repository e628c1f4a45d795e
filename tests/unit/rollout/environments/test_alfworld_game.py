"""ALFWorld's games, played by its package where that is installed; the data are not needed."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny_alfworld import SOLUTION, write_games

from megatron_resrl.data.records import PromptRecord
from megatron_resrl.rollout.environments.alfworld_game import ALFWorldGame, games_of

SPLITS = {"train": 3, "valid_seen": 1, "valid_unseen": 2}
TRAIN = "json_2.1.1/train"


def record(**extra: object) -> PromptRecord:
    return PromptRecord(0, [{"role": "user", "content": "play"}], "", "test", extra)


def write_empty_games(data: Path, *paths: str, text: str = '{"solvable": true}') -> None:
    for path in paths:
        (data / path).mkdir(parents=True, exist_ok=True)
        (data / path / "game.tw-pddl").write_text(text)


def test_games_of_leaves_out_what_cannot_be_won(tmp_path: Path) -> None:
    write_empty_games(tmp_path, f"{TRAIN}/b/1", f"{TRAIN}/a/2", "json_2.1.1/valid_seen/c/3")
    write_empty_games(tmp_path, f"{TRAIN}/movable_recep/1", f"{TRAIN}/AppleSliced/1")
    write_empty_games(tmp_path, f"{TRAIN}/d/1", text='{"solvable": false}')
    write_empty_games(tmp_path, f"{TRAIN}/e/1", text="{}")
    found = [file.parent.name for file in games_of(tmp_path, "train")]
    assert found == ["2", "1"]
    assert len(games_of(tmp_path, "eval_in_distribution")) == 1
    with pytest.raises(ValueError, match="alfworld-download fetches them"):
        games_of(tmp_path, "eval_out_of_distribution")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"split": "test"}, "split is 'test'; give train, eval_in_distribution"),
        ({"step_limit": 0}, "step_limit is 0; give at least 1"),
    ],
)
def test_alfworld_game_refuses_options(options: dict, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        ALFWorldGame(**options)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("alfworld", reason="megatron-resrl[alfworld]")
    folder = tmp_path_factory.mktemp("alfworld")
    write_games(folder, SPLITS)
    return folder


@pytest.mark.slow
def test_alfworld_game_is_won_by_its_errand(data: Path) -> None:
    game = ALFWorldGame(str(data), show_commands=True)
    opening = game.reset(record(seed=5), (0,))
    assert opening is not None
    assert "Your task is to: put a mug on the desk." in opening
    assert "Possible commands: " in opening
    assert "go to countertop 1" in opening
    *before, last = SOLUTION
    for command in before:
        said = game.step(command)
        assert (said.done, said.score) == (False, 0.0)
        assert "Nothing happens" not in said.text
    assert "Nothing happens" in game.step("fly away").text
    done = game.step(last)
    assert (done.done, done.score) == (True, 1.0)
    game.close()


@pytest.mark.slow
def test_alfworld_game_begins_a_group_alike(data: Path) -> None:
    games = [ALFWorldGame(str(data)) for _ in range(2)]
    first, second = (game.reset(record(), (7, 3)) for game in games)
    assert first == second
    assert "Possible commands" not in str(first)
    # Both are under way: what one does is not seen in the other.
    seen, taken = SOLUTION[:2]
    assert "you see a mug 1" in games[0].step(seen).text
    assert "pick up the mug 1" in games[0].step(taken).text
    assert "you see a mug 1" in games[1].step(seen).text
    for game in games:
        game.close()


@pytest.mark.slow
def test_alfworld_game_ends_by_its_step_limit(data: Path) -> None:
    game = ALFWorldGame(str(data), step_limit=2)
    game.reset(record(), (0,))
    said = [game.step("look") for _ in range(2)]
    assert [(each.done, each.score) for each in said] == [(False, 0.0), (True, 0.0)]
    game.close()


@pytest.mark.slow
def test_alfworld_game_plays_the_game_of_the_row(data: Path) -> None:
    game = ALFWorldGame(str(data), split="eval_out_of_distribution")
    own = "json_2.1.1/valid_seen/put_mug_0/game.tw-pddl"
    assert "put a mug on the desk" in str(game.reset(record(game=own), (0,)))
    with pytest.raises(ValueError, match="column game of prompt 0 of test is 'missing'"):
        game.reset(record(game="missing"), (0,))
    with pytest.raises(ValueError, match="there is no folder"):
        ALFWorldGame(str(data / "missing"))
