"""A reward function behind an address."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from megatron_resrl.config.ranges import at_least
from megatron_resrl.errors import SettingError
from megatron_resrl.rewards.grader import GradingTask


@dataclass(frozen=True, kw_only=True)
class RemoteReward:
    """The score that a server gives: `POST url` with a response, and `{"score": 0.5}` back."""

    url: str
    """E.g. http://host:8000/score."""
    batch_size: Annotated[int, at_least(1)] = 1
    """Responses of a request; above 1 `{"items": [...]}` is posted, for `{"scores": [...]}`."""
    concurrency: Annotated[int, at_least(1)] = 16
    """Requests at a time, per rank."""
    tries: Annotated[int, at_least(1)] = 3
    """Of a request that fails; 0.5 s lie between the first two, then twice as long each time."""
    cache: Annotated[int, at_least(0)] = 100_000
    """Scores that a rank keeps, so that the same request is not made again."""
    api_key_env: str | None = None
    """Environment variable with the key that is sent as a bearer token."""

    def __post_init__(self) -> None:
        """Checks the address.

        Raises:
            ValueError: It is none.
        """
        require_address(self.url)

    @property
    def address(self) -> str:
        """See `ServedReward`."""
        return self.url

    def headers(self) -> dict[str, str]:
        """See `ServedReward`."""
        return bearer(self.api_key_env)

    def content(self, task: GradingTask) -> dict[str, Any]:
        """See `ServedReward`."""
        return {
            "response": task.response,
            "ground_truth": as_json(task.ground_truth),
            "prompt": task.prompt,
            "data_source": task.data_source,
            "extra": as_json(task.extra),
        }

    def together(self, contents: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """See `ServedReward`."""
        return {"items": list(contents)}

    def scores(self, answer: Any, count: int) -> list[float | None]:
        """See `ServedReward`."""
        if self.batch_size == 1:
            return [_finite(answer["score"])]
        scores = answer["scores"]
        if not isinstance(scores, list) or len(scores) != count:
            raise ValueError("another number of scores")
        return [_finite(score) for score in scores]


def check_ground_truth(value: Any) -> None:
    """Accepts any ground truth: the server knows what it needs."""


def require_address(url: str) -> None:
    """Raises ValueError unless the text is the address of a server."""
    if not url.startswith(("http://", "https://")):
        raise ValueError(f"url is {url!r}: give an address like http://host:8000/score")


def bearer(variable: str | None) -> dict[str, str]:
    """The header with the key of an environment variable; None: none.

    Raises:
        SettingError: There is no such variable.
    """
    if variable is None:
        return {}
    if not (key := os.environ.get(variable)):
        problem = "there is no such environment variable"
        raise SettingError("reward.options.api_key_env", variable, problem, "export it")
    return {"Authorization": f"Bearer {key}"}


def as_json(value: Any) -> Any:
    """A value of a row as JSON has it: dates and the like as texts."""
    return json.loads(json.dumps(value, default=str))


def _finite(score: Any) -> float | None:
    if isinstance(score, bool) or not isinstance(score, (int, float)) or not math.isfinite(score):
        return None
    return float(score)
