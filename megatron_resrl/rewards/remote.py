"""A reward function behind an address."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from megatron_resrl.config.ranges import at_least
from megatron_resrl.rewards.grader import GradingTask
from megatron_resrl.rewards.served import ServedReward


@dataclass(frozen=True, kw_only=True)
class RemoteReward(ServedReward):
    """The score that a server gives: `POST url` with a response, and `{"score": 0.5}` back."""

    batch_size: Annotated[int, at_least(1)] = 1
    """Responses of a request; above 1 `{"items": [...]}` is posted, for `{"scores": [...]}`."""

    @property
    def together(self) -> int:
        """See `ServedReward`."""
        return self.batch_size

    def content(self, task: GradingTask) -> dict[str, Any]:
        """See `ServedReward`."""
        return {
            "response": task.response,
            "ground_truth": _as_json(task.ground_truth),
            "prompt": task.prompt,
            "data_source": task.data_source,
            "extra": _as_json(task.extra),
        }

    def joined(self, contents: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """See `ServedReward`."""
        return super().joined(contents) if self.batch_size == 1 else {"items": list(contents)}

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


def _as_json(value: Any) -> Any:
    """A value of a row as JSON has it: dates and the like as texts."""
    return json.loads(json.dumps(value, default=str))


def _finite(score: Any) -> float | None:
    if isinstance(score, bool) or not isinstance(score, (int, float)) or not math.isfinite(score):
        return None
    return float(score)
