"""An OpenEnv server, made with its own package: a number is to be guessed.

.venv-openenv/bin/python tests/openenv_server.py PORT
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
    message: str


class Hint(Observation):
    text: str


class GuessNumber(Environment[Guess, Hint, State]):
    SUPPORTS_CONCURRENT_SESSIONS = True

    def reset(self, seed: int | None = None, episode_id: str | None = None, **_: Any) -> Hint:
        self._secret = random.Random(seed).randrange(8)
        self._state = State(episode_id=episode_id, step_count=0)
        return Hint(text="guess a number from 0 to 7")

    def step(self, action: Guess, timeout_s: float | None = None, **_: Any) -> Hint:
        self._state.step_count += 1
        guess = int(action.message)
        if guess == self._secret:
            return Hint(text="found", done=True, reward=1.0)
        return Hint(text="higher" if guess < self._secret else "lower", reward=-0.125)

    @property
    def state(self) -> State:
        return self._state


app = create_fastapi_app(GuessNumber, Guess, Hint, max_concurrent_envs=2)

if __name__ == "__main__":
    uvicorn.run(app, host="127.0.0.1", port=int(sys.argv[1]), log_level="warning")
