"""Where the environment of an episode lives: in this process."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Protocol

from megatron_resrl.data.records import PromptRecord
from megatron_resrl.rollout.environments.environment import Environment, Observation
from megatron_resrl.rollout.environments.running import CallFailed, Failure


class Seat(Protocol):
    """The environment of one episode, wherever it is. What it returns is plain data."""

    def reset(self, record: PromptRecord, seed: tuple[int, ...]) -> str | None:
        """See `Environment.reset`."""
        ...

    def step(self, action: str) -> Observation:
        """See `Environment.step`."""
        ...

    def close(self) -> None:
        """Ends the episode."""
        ...


class Seats(Protocol):
    """Gives seats to episodes."""

    count: int | None
    """That one rank has at once; None: any number."""
    timeout_s: float | None
    """Seconds that a call of a seat may take; None: it bounds itself."""

    def take(self) -> Seat:
        """A seat for one episode. Called in the thread that ends last."""
        ...

    def close(self) -> None:
        """Ends what the seats hold."""
        ...


class LocalSeat:
    """An environment in this process."""

    def __init__(self, make: Callable[[], Environment]) -> None:
        self._make = make
        self._environment: Environment | None = None

    def reset(self, record: PromptRecord, seed: tuple[int, ...]) -> str | None:
        """See `Seat.reset`; makes the environment, too.

        Raises:
            CallFailed: It returned no opening. What it raises itself, besides.
        """
        self._environment = self._make()
        opening: Any = self._environment.reset(record, seed)
        if opening is not None and not (isinstance(opening, str) and opening):
            raise _malformed("reset", opening, "neither a text nor None")
        return opening

    def step(self, action: str) -> Observation:
        """See `Seat.step`.

        Raises:
            CallFailed: It returned no observation. What it raises itself, besides.
        """
        assert self._environment is not None, "reset comes first"
        observation: Any = self._environment.step(action)
        if not isinstance(observation, Observation) or not isinstance(observation.text, str):
            raise _malformed("step", observation, "not an Observation with a text")
        try:
            score = None if observation.score is None else float(observation.score)
        except (TypeError, ValueError):
            score = math.nan
        if score is not None and not math.isfinite(score):
            raise _malformed("step", observation.score, "not a finite score")
        return Observation(observation.text, bool(observation.done), score)

    def close(self) -> None:
        """See `Seat.close`."""
        close = getattr(self._environment, "close", None)
        if close is not None:
            close()


class LocalSeats:
    """Environments in this process, as many as there are episodes."""

    count: int | None = None

    def __init__(self, make: Callable[[], Environment], timeout_s: float) -> None:
        """
        Args:
            make: Makes the environment of one episode.
            timeout_s: Seconds that each of its calls may take.
        """
        self.make = make
        self.timeout_s: float | None = timeout_s

    def take(self) -> Seat:
        """See `Seats.take`."""
        return LocalSeat(self.make)

    def close(self) -> None:
        """Nothing was started."""


def _malformed(method: str, returned: Any, problem: str) -> CallFailed:
    return CallFailed(Failure("malformed", f"{method} returned {returned!r}, which is {problem}"))
