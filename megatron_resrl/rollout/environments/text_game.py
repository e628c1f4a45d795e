"""What environments of other packages have in common: text in, text and a score out."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from megatron_resrl.data.records import PromptRecord
from megatron_resrl.rollout.environments.environment import Observation

LARGEST_SEED = 2**31 - 1


@dataclass(frozen=True)
class Played:
    """What a game says to a command."""

    text: str
    score: float
    """Of the episode up to here."""
    done: bool = False


class TextGame(ABC):
    """An environment that makes its own opening, reads a command out of each turn, and scores."""

    role = "user"

    def __init__(self, action_pattern: str | None = None) -> None:
        """
        Args:
            action_pattern: Regular expression with one group, whose last match in a turn is the
                command, e.g. `<action>(.*?)</action>`; None: the whole turn is.

        Raises:
            ValueError: It is no such expression.
        """
        self._pattern = None if action_pattern is None else _compiled(action_pattern)
        self._score = 0.0

    @abstractmethod
    def begin(self, record: PromptRecord, seed: int) -> str | None:
        """Begins a game; see `Environment.reset`."""

    @abstractmethod
    def play(self, command: str) -> Played:
        """Answers a command."""

    def reset(self, record: PromptRecord, seed: tuple[int, ...]) -> str | None:
        """See `Environment.reset`. A column `seed` of the question's row names the game; without
        it, every visit of the question is another game.

        Raises:
            ValueError: The column is no number that can be a seed.
        """
        self._score = 0.0
        return self.begin(record, _seed_of(record, seed))

    def step(self, action: str) -> Observation:
        """See `Environment.step`. A turn without a command costs a turn and no more."""
        command = self._command(action)
        if command is None:
            assert self._pattern is not None, "only a pattern can be missed"
            said = f"there is no action in it; write one that matches {self._pattern.pattern}"
            return Observation(said, score=self._score)
        played = self.play(command)
        self._score = float(played.score)
        return Observation(played.text, played.done, self._score)

    def _command(self, action: str) -> str | None:
        if self._pattern is None:
            return action.strip()
        found = self._pattern.findall(action)
        return found[-1].strip() if found else None


def with_commands(text: str, commands: Iterable[str]) -> str:
    """A text of a game, and under it the commands that the game takes now, in their order."""
    return f"{text}\n\nPossible commands: {', '.join(commands)}"


def _seed_of(record: PromptRecord, seed: tuple[int, ...]) -> int:
    own = record.extra.get("seed")
    if own is None:
        return int(np.random.default_rng(seed).integers(LARGEST_SEED + 1))
    if isinstance(own, bool) or not isinstance(own, int) or not 0 <= own <= LARGEST_SEED:
        raise ValueError(f"column seed of {record} is {own!r}; give 0 to {LARGEST_SEED}")
    return own


def _compiled(pattern: str) -> re.Pattern[str]:
    try:
        compiled = re.compile(pattern, re.DOTALL)
    except re.error as error:
        raise ValueError(f"action_pattern is {pattern!r}, no regular expression: {error}") from None
    if compiled.groups != 1:
        raise ValueError(f"action_pattern is {pattern!r}; give an expression with one group")
    return compiled
