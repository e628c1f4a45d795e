"""Tasks of ALFWorld: errands in a household, told by TextWorld."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from megatron_resrl.data.records import PromptRecord
from megatron_resrl.rollout.environments.packages import import_package
from megatron_resrl.rollout.environments.text_game import Played, TextGame, with_commands

_FOLDERS = {
    "train": "train",
    "eval_in_distribution": "valid_seen",
    "eval_out_of_distribution": "valid_unseen",
}
"""Split, as the package calls it -> its folder in `json_2.1.1` of the data."""
_UNPLAYABLE = ("movable", "Sliced")
"""Parts of paths of tasks that the package leaves out."""
_games: dict[Path, list[Path]] = {}
"""Folder of a split -> its games. Opening thousands of files takes long, once in a process."""


class ALFWorldGame(TextGame):
    """An errand. The score is 1 when it is done, and 0 before.

    A row's column `game` names the game's file, as a path in the data folder. A row without it gets
    one of the split, drawn by the seed.
    """

    def __init__(
        self,
        data: str | None = None,
        split: str = "train",
        step_limit: int = 50,
        show_commands: bool = False,
        action_pattern: str | None = None,
    ) -> None:
        """
        Args:
            data: Folder that `alfworld-download` has filled; None: the package's, which the
                variable ALFWORLD_DATA names.
            split: `train`, `eval_in_distribution` or `eval_out_of_distribution`, of rows that name
                no game.
            step_limit: Commands until the game ends.
            show_commands: Every text lists the commands that the game takes.
            action_pattern: See `TextGame`.

        Raises:
            ValueError: There is no such folder or split, or no step.
            MissingPackage: ALFWorld is not installed.
        """
        super().__init__(action_pattern)
        if split not in _FOLDERS:
            raise ValueError(f"split is {split!r}; give {', '.join(_FOLDERS)}")
        if step_limit < 1:
            raise ValueError(f"step_limit is {step_limit}; give at least 1")
        self._package = import_package(
            "alfworld.agents.environment.alfred_tw_env", extra="alfworld"
        )
        self._textworld = import_package("textworld", extra="alfworld")
        info = import_package("alfworld.info", extra="alfworld")
        self._data = Path(data or info.ALFWORLD_DATA).expanduser()
        if not self._data.is_dir():
            raise ValueError(f"data is {data!r}: there is no folder {self._data}")
        self._split = split
        self._step_limit = step_limit
        self._show_commands = show_commands
        self._game: Any = None
        self._steps = 0

    def begin(self, record: PromptRecord, seed: int) -> str | None:
        """See `TextGame.begin`: the room and the errand.

        Raises:
            ValueError: There is no such file, or no game at all.
        """
        self.close()
        self._steps = 0
        infos = self._textworld.EnvInfos(won=True, admissible_commands=True)
        # The package's other names of things, such as "apple 1", in one order for all samples.
        names = self._package.AlfredDemangler(shuffle=False)
        self._game = self._textworld.start(str(self._file(record, seed)), infos, [names])
        return self._text(self._game.reset())

    def play(self, command: str) -> Played:
        """See `TextGame.play`."""
        state, _, done = self._game.step(" ".join(command.split()))
        self._steps += 1
        over = bool(done) or self._steps >= self._step_limit
        return Played(self._text(state), float(bool(state["won"])), over)

    def close(self) -> None:
        """See `Environment.close`."""
        if self._game is not None:
            self._game.close()
            self._game = None

    def _text(self, state: Any) -> str:
        text = state["feedback"].strip()
        if not self._show_commands:
            return text
        return with_commands(text, sorted(state["admissible_commands"]))

    def _file(self, record: PromptRecord, seed: int) -> Path:
        own = record.extra.get("game")
        if own is None:
            games = games_of(self._data, self._split)
            return games[seed % len(games)]
        file = self._data / str(own)
        if not file.is_file():
            raise ValueError(f"column game of {record} is {own!r}: there is no file {file}")
        return file


def games_of(data: Path, split: str) -> list[Path]:
    """The games of a split that can be won, in an order that is a matter of their paths alone.

    Args:
        data: Folder that `alfworld-download` has filled.
        split: See `ALFWorldGame`.

    Raises:
        ValueError: There is none.
    """
    folder = data / "json_2.1.1" / _FOLDERS[split]
    if folder not in _games:
        _games[folder] = [file for file in sorted(folder.rglob("game.tw-pddl")) if _solvable(file)]
    if not _games[folder]:
        raise ValueError(
            f"split is {split!r}, and {folder} has no game; alfworld-download fetches them"
        )
    return _games[folder]


def _solvable(file: Path) -> bool:
    if any(part in str(file.parent) for part in _UNPLAYABLE):
        return False
    return bool(json.loads(file.read_text(encoding="utf-8")).get("solvable"))
