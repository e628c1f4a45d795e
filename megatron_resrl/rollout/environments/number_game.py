"""A text game: find a hidden number by guesses that are answered with "higher" or "lower"."""

from __future__ import annotations

import re

import numpy as np

from megatron_resrl.data.records import PromptRecord
from megatron_resrl.rollout.environments.environment import Observation

_INTEGER = re.compile(r"-?\d{1,18}")


class NumberGame:
    """The last integer of a turn is the guess. The game scores itself; no grader is asked."""

    role = "user"

    def __init__(
        self, low: int = 1, high: int = 100, secret: str = "answer", turn_cost: float = 0.0
    ) -> None:
        """
        Args:
            low: Smallest number that can be hidden.
            high: Largest one.
            secret: `answer`: the number is the question's ground truth, the same for all samples;
                `random`: drawn anew whenever the question is asked.
            turn_cost: Taken off the score of 1, down to 0, for each guess before the right one.

        Raises:
            ValueError: There is no number to hide; another kind of secret; a cost out of range.
        """
        if low > high:
            raise ValueError(f"low is {low} and high {high}; give low <= high")
        if secret not in ("answer", "random"):
            raise ValueError(f"secret is {secret!r}; give answer or random")
        if not 0 <= turn_cost <= 1:
            raise ValueError(f"turn_cost is {turn_cost}; give a number from 0 to 1")
        self.low, self.high = low, high
        self.turn_cost = turn_cost
        self._from_answer = secret == "answer"
        self._secret = low
        self._wrong = 0

    def reset(self, record: PromptRecord, seed: tuple[int, ...]) -> None:
        """Hides a number.

        Raises:
            ValueError: The ground truth is no number of the range.
        """
        self._wrong = 0
        if not self._from_answer:
            self._secret = int(np.random.default_rng(seed).integers(self.low, self.high + 1))
            return
        self._secret = int(record.ground_truth)
        if not self.low <= self._secret <= self.high:
            raise ValueError(
                f"the ground truth is {self._secret}; give a number from {self.low} to {self.high}"
            )

    def step(self, action: str) -> Observation:
        """See `Environment.step`."""
        numbers = _INTEGER.findall(action)
        if numbers and int(numbers[-1]) == self._secret:
            return Observation(done=True, score=max(0.0, 1.0 - self.turn_cost * self._wrong))
        self._wrong += 1
        if not numbers:
            return Observation(f"say a number from {self.low} to {self.high}", score=0.0)
        hint = "higher" if int(numbers[-1]) < self._secret else "lower"
        return Observation(hint, score=0.0)
