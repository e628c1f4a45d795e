"""An OpenEnv server, made with its own package: a number from 0 to 7 is to be guessed.

    .venv-openenv/bin/python examples/agents/openenv/server.py PORT [EPISODES]

plays so many episodes at once, 64 unless another number is given.
"""

from __future__ import annotations

import random
import sys
from typing import Any

import uvicorn
from openenv.core.env_server.http_server import create_fastapi_app
from openenv.core.env_server.interfaces import Environment
from openenv.core.env_server.types import Action, Observation, State


class Guess(Action):
    """What the policy says."""

    message: str


class Hint(Observation):
    """What the game says."""

    text: str


class GuessNumber(Environment[Guess, Hint, State]):
    """Says `higher` or `lower` until the number is found."""

    SUPPORTS_CONCURRENT_SESSIONS = True

    def reset(self, seed: int | None = None, episode_id: str | None = None, **_: Any) -> Hint:
        """Draws a number by the seed."""
        self._secret = random.Random(seed).randrange(8)
        self._state = State(episode_id=episode_id, step_count=0)
        return Hint(text="guess a number from 0 to 7")

    def step(self, action: Guess, timeout_s: float | None = None, **_: Any) -> Hint:
        """1 for the number, and less for every guess before."""
        self._state.step_count += 1
        guess = int(action.message)
        if guess == self._secret:
            return Hint(text="found", done=True, reward=1.0)
        return Hint(text="higher" if guess < self._secret else "lower", reward=-0.125)

    @property
    def state(self) -> State:
        """Which episode it is, and its guesses."""
        return self._state


if __name__ == "__main__":
    port, episodes = (*map(int, sys.argv[1:]), 64)[:2]
    app = create_fastapi_app(GuessNumber, Guess, Hint, max_concurrent_envs=episodes)
    uvicorn.run(app, host="127.0.0.1", port=port, log_level="warning")
