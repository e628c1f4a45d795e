"""Games with Gymnasium's interface: registered ones, or those of a file."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from typing import Any

from megatron_resrl.data.records import PromptRecord
from megatron_resrl.rollout.environments.packages import import_package
from megatron_resrl.rollout.environments.text_game import Played, TextGame
from megatron_resrl.user_files import run_file, split_name

_INTEGER = re.compile(r"-?\d{1,18}")


class GymnasiumGame(TextGame):
    """An environment with `reset(seed=) -> (observation, info)` and `step(action) -> (observation,
    reward, terminated, truncated, info)`. The score is the sum of the rewards.

    Texts are given to it as they are. Where its action space is discrete, the action is the last
    integer of the command. Observations that are not texts are shown as Python prints them.
    """

    def __init__(
        self,
        id: str,
        options: Mapping[str, Any] | None = None,
        action_pattern: str | None = None,
    ) -> None:
        """
        Args:
            id: A registered name such as FrozenLake-v1, or package:name, of Gymnasium's; or
                `path.py:name` of a function or class that returns the environment.
            options: Keyword arguments of the environment.
            action_pattern: See `TextGame`.

        Raises:
            ValueError: There is no such environment.
            MissingPackage: Gymnasium is not installed.
        """
        super().__init__(action_pattern)
        self._game = _maker(id)(**(options or {}))
        self._total = 0.0

    def begin(self, record: PromptRecord, seed: int) -> str | None:
        """See `TextGame.begin`."""
        self._total = 0.0
        observation, _ = self._game.reset(seed=seed)
        return str(observation) or None

    def play(self, command: str) -> Played:
        """See `TextGame.play`. A command without an action costs a turn and no more."""
        action = self._action(command)
        if action is None:
            return Played(f"say one of the actions {self._numbers()}", self._total)
        observation, reward, terminated, truncated, _ = self._game.step(action)
        if not math.isfinite(reward):
            raise ValueError(f"step returned the reward {reward}; a finite number is right")
        self._total += float(reward)
        return Played(str(observation), self._total, bool(terminated or truncated))

    def close(self) -> None:
        """See `Environment.close`."""
        self._game.close()

    def _action(self, command: str) -> str | int | None:
        if self._numbers() is None:
            return command
        found = _INTEGER.findall(command)
        if not found or int(found[-1]) not in self._numbers():
            return None
        return int(found[-1])

    def _numbers(self) -> Any:
        """The actions of a discrete space; None: another one."""
        space: Any = getattr(self._game, "action_space", None)
        if type(space).__name__ != "Discrete":
            return None
        return range(int(space.start), int(space.start + space.n))


def _maker(id: str) -> Callable[..., Any]:
    place = split_name(id)
    if place is None:
        gymnasium = import_package("gymnasium", extra="gymnasium")
        try:
            gymnasium.spec(id)
        except gymnasium.error.Error as error:
            raise ValueError(f"id is {id!r}: {error}") from None
        return lambda **options: gymnasium.make(id, **options)
    file, name = place
    if not file.is_file():
        raise ValueError(f"id is {id!r}: there is no file {file}")
    made = getattr(run_file(file, "gymnasium"), name, None)
    if not callable(made):
        raise ValueError(f"id is {id!r}: {file} has no function or class {name!r}")
    return made
