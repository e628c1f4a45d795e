"""A client of OpenEnv servers: JSON messages over a WebSocket, one session for each episode.

The messages are those of OpenEnv's `env_server` (github.com/meta-pytorch/OpenEnv, its types.py and
http_server.py): `{"type": "reset" | "step" | "state" | "close", "data": {...}}`, answered with
`{"type": "observation" | "state" | "error", "data": {...}}`.
"""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from megatron_resrl.data.records import PromptRecord
from megatron_resrl.rollout.environments.packages import import_package
from megatron_resrl.rollout.environments.text_game import Played, TextGame

LARGEST_MESSAGE = 100 * 2**20
"""Bytes; that of OpenEnv's own client."""
CONNECT_S = 10.0


class ServerFailed(RuntimeError):
    """The server cannot be reached, refuses a message, or answers nonsense."""


class OpenEnvClient:
    """A session with a server."""

    def __init__(self, url: str) -> None:
        """Connects.

        Args:
            url: Of the server, http://host:port or ws://host:port.

        Raises:
            ServerFailed: It cannot be reached.
            MissingPackage: websockets is not installed.
        """
        self._package = import_package("websockets", extra="openenv")
        connect = import_package("websockets.sync.client", extra="openenv").connect
        scheme, _, place = url.rstrip("/").partition("://")
        self._address = f"{scheme.replace('http', 'ws')}://{place}/ws"
        self._session = contextlib.ExitStack()
        try:
            self._socket = self._session.enter_context(
                connect(self._address, open_timeout=CONNECT_S, max_size=LARGEST_MESSAGE)
            )
        except (OSError, TimeoutError, self._package.WebSocketException) as error:
            raise ServerFailed(f"{self._address} cannot be reached: {error}") from error

    def reset(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """Begins an episode.

        Args:
            arguments: `seed`, and what the environment takes beside it.

        Returns:
            `observation`, `reward` and `done`.

        Raises:
            ServerFailed: The server refuses, or has ended.
        """
        return self._ask({"type": "reset", "data": dict(arguments)}, "observation")

    def step(self, action: Mapping[str, Any]) -> dict[str, Any]:
        """Takes an action; see `reset`."""
        return self._ask({"type": "step", "data": dict(action)}, "observation")

    def state(self) -> dict[str, Any]:
        """What the server says of the episode, e.g. `step_count`; raises like `reset`."""
        return self._ask({"type": "state"}, "state")

    def close(self) -> None:
        """Ends the session."""
        # The server may have been faster.
        with self._session, contextlib.suppress(self._package.ConnectionClosed):
            self._socket.send(json.dumps({"type": "close"}))

    def _ask(self, message: Mapping[str, Any], kind: str) -> dict[str, Any]:
        try:
            self._socket.send(json.dumps(message))
            text = self._socket.recv()
        except self._package.ConnectionClosed as error:
            raise ServerFailed(f"{self._address} has ended the session: {error}") from error
        try:
            answer = json.loads(text)
        except ValueError:
            raise ServerFailed(f"{self._address} answered {text[:200]!r}, not JSON") from None
        found = answer.get("type") if isinstance(answer, dict) else None
        data = answer.get("data") if isinstance(answer, dict) else None
        if found == "error" and isinstance(data, dict):
            raise ServerFailed(f"{self._address} says {data.get('code')}: {data.get('message')}")
        if found != kind or not isinstance(data, dict):
            raise ServerFailed(f"{self._address} answered {text[:200]!r} to {message['type']}")
        return data


class OpenEnv(TextGame):
    """An episode on an OpenEnv server."""

    def __init__(
        self,
        url: str,
        action_key: str | None = "message",
        action_fields: Mapping[str, Any] | None = None,
        observation_key: str | None = None,
        reset_columns: Sequence[str] = (),
        score: Literal["sum", "last"] = "sum",
        action_pattern: str | None = None,
    ) -> None:
        """
        Args:
            url: Of the server, e.g. http://127.0.0.1:8000. It has to allow as many sessions as
                there are episodes at once.
            action_key: Field of the action that takes the command; None: the command is the
                action, as JSON.
            action_fields: Further fields of every action.
            observation_key: Field of the observation that is shown, dotted for nested ones; None:
                all of it, as JSON.
            reset_columns: Columns of the question's row that the server gets with the seed.
            score: `sum` or `last` of the rewards.
            action_pattern: See `TextGame`.

        Raises:
            ValueError: `score` is neither, or the address is none.
            MissingPackage: websockets is not installed.
        """
        super().__init__(action_pattern)
        if score not in ("sum", "last"):
            raise ValueError(f"score is {score!r}; give sum or last")
        if not url.startswith(("http://", "https://", "ws://", "wss://")):
            raise ValueError(f"url is {url!r}; give one like http://127.0.0.1:8000")
        import_package("websockets", extra="openenv")  # Before the run, not in its first episode.
        self._url = url
        self._action_key = action_key
        self._action_fields = dict(action_fields or {})
        self._observation_key = observation_key
        self._reset_columns = tuple(reset_columns)
        self._adds_up = score == "sum"
        self._client: OpenEnvClient | None = None
        self._total = 0.0

    def begin(self, record: PromptRecord, seed: int) -> str | None:
        """See `TextGame.begin`.

        Raises:
            ServerFailed: The server cannot be used.
            KeyError: The row has no such column.
        """
        self._total = 0.0
        own = {name: record.extra[name] for name in self._reset_columns}
        self._client = self._client or OpenEnvClient(self._url)
        return self._shown(self._client.reset({"seed": seed} | own)) or None

    def play(self, command: str) -> Played:
        """See `TextGame.play`. A command that is no action costs a turn and no more.

        Raises:
            ServerFailed: The server cannot be used.
        """
        assert self._client is not None, "begin comes first"
        action = self._action(command)
        if action is None:
            return Played("the action is not a JSON object", self._total)
        answer = self._client.step(action)
        reward = answer.get("reward")
        if reward is not None:
            if not isinstance(reward, int | float) or not math.isfinite(reward):
                raise ServerFailed(f"the reward is {reward!r}; a finite number is right")
            self._total = float(reward) + (self._total if self._adds_up else 0.0)
        return Played(self._shown(answer), self._total, answer.get("done") is True)

    def close(self) -> None:
        """See `Environment.close`."""
        if self._client is not None:
            self._client.close()
            self._client = None

    def _action(self, command: str) -> dict[str, Any] | None:
        if self._action_key is not None:
            return self._action_fields | {self._action_key: command}
        try:
            action = json.loads(command)
        except (ValueError, RecursionError):
            return None
        return self._action_fields | action if isinstance(action, dict) else None

    def _shown(self, answer: Mapping[str, Any]) -> str:
        """The text of an observation.

        Raises:
            ServerFailed: It has no such field.
        """
        value: Any = answer.get("observation")
        for name in self._observation_key.split(".") if self._observation_key else ():
            if not isinstance(value, dict) or name not in value:
                fields = ", ".join(value) if isinstance(value, dict) else repr(value)
                raise ServerFailed(
                    f"the observation has no field {self._observation_key!r} (observation_key); "
                    f"it has {fields}"
                )
            value = value[name]
        return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
