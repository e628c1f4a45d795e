"""Text adventures that the package TextWorld makes on this machine, or that are there as files."""

from __future__ import annotations

import fcntl
import os
import re
from pathlib import Path
from typing import Any

from megatron_resrl.data.records import PromptRecord
from megatron_resrl.rollout.environments.packages import import_package
from megatron_resrl.rollout.environments.text_game import Played, TextGame

_PROMPT = re.compile(r"\n+>.*\Z", re.DOTALL)
"""The interpreter's own prompt, and the line of its status bar."""


class TextWorldGame(TextGame):
    """A game: rooms, things, and a quest. The score is the share of the quest's points.

    A row's column `game` names a compiled game (.z8, .ulx). Without it a game is made from the seed
    and kept in `games`, where the other samples, and later runs, find it.
    """

    def __init__(
        self,
        games: str = "outputs/textworld",
        rooms: int = 2,
        objects: int = 4,
        quest_length: int = 2,
        action_pattern: str | None = None,
    ) -> None:
        """
        Args:
            games: Folder of the games that are made.
            rooms: Of such a game.
            objects: Of such a game.
            quest_length: Commands that solve it at least.
            action_pattern: See `TextGame`.

        Raises:
            ValueError: A number is below 1.
            MissingPackage: TextWorld is not installed.
        """
        super().__init__(action_pattern)
        for name, value in (("rooms", rooms), ("objects", objects), ("quest_length", quest_length)):
            if value < 1:
                raise ValueError(f"{name} is {value}; give at least 1")
        self._textworld = import_package("textworld", extra="textworld")
        self._folder = Path(games).expanduser()
        self._sizes = (rooms, objects, quest_length)
        self._game: Any = None
        self._most = 1

    def begin(self, record: PromptRecord, seed: int) -> str | None:
        """See `TextGame.begin`: the quest and the first room.

        Raises:
            ValueError: There is no such file.
        """
        infos = self._textworld.EnvInfos(
            objective=True, description=True, max_score=True, score=True
        )
        self.close()
        self._game = self._textworld.start(str(self._file(record, seed)), infos)
        state = self._game.reset()
        self._most = state.max_score or 1
        texts = (state.objective, state.description)
        return "\n\n".join(_plain(text) for text in texts if text) or None

    def play(self, command: str) -> Played:
        """See `TextGame.play`."""
        # The interpreter takes one line; an empty one would be asked for again.
        line = " ".join(command.split()) or "look"
        state, _, done = self._game.step(line)
        return Played(_plain(state.feedback), (state.score or 0) / self._most, bool(done))

    def close(self) -> None:
        """See `Environment.close`."""
        if self._game is not None:
            self._game.close()
            self._game = None

    def _file(self, record: PromptRecord, seed: int) -> Path:
        own = record.extra.get("game")
        if own is None:
            return self._made(seed)
        if not Path(own).is_file():
            raise ValueError(f"column game of {record} is {own!r}, and there is no such file")
        return Path(own)

    def _made(self, seed: int) -> Path:
        rooms, objects, quest_length = self._sizes
        name = f"rooms{rooms}_objects{objects}_quest{quest_length}_seed{seed}"
        file = self._folder / name / "game.z8"
        if file.exists():
            return file
        file.parent.mkdir(parents=True, exist_ok=True)
        with (file.parent / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # The other samples of the group want it, too.
            if not file.exists():
                self._make(file, seed)
        return file

    def _make(self, file: Path, seed: int) -> None:
        options = self._textworld.GameOptions()
        options.seeds = seed
        options.nb_rooms, options.nb_objects, options.quest_length = self._sizes
        options.path = str(file.parent / "incomplete" / "game.z8")
        game = self._textworld.generator.make_game(options)
        made = self._textworld.generator.compile_game(game, options)
        for path in Path(made).parent.glob("game.*"):
            if path.suffix != ".z8":
                os.replace(path, file.parent / path.name)  # What the package knows of the game.
        os.replace(made, file)
        Path(made).parent.rmdir()


def _plain(text: str) -> str:
    """A text without the interpreter's prompt and empty lines."""
    lines = (line.strip() for line in _PROMPT.sub("", text).splitlines())
    return "\n".join(filter(None, lines))
