"""Which groups make up a step.

Dynamic sampling (DAPO, arXiv 2503.14476): a group whose rewards are all equal has no advantage. Its
place in the step goes to the next group with signal among groups of further prompts, which are
generated round by round, as many as places are open; a place that stays open keeps its first group.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

logger = logging.getLogger(__name__)


class SelectionRule(Protocol):
    """Which groups make up a step. `rounds`: for each round, whether its groups have signal."""

    def further_prompts(self, step: int, rounds: Sequence[Sequence[bool]]) -> int:
        """How many prompts the next round has; 0: there is none. Collective."""
        ...

    def choose(self, step: int, rounds: Sequence[Sequence[bool]]) -> list[tuple[int, int]]:
        """(round, index) of the step's groups, as many as round 0 has."""
        ...


@dataclass(frozen=True)
class DynamicSampling:
    """The rule of DAPO: groups without signal are replaced by groups of further prompts."""

    max_refills: int
    """Rounds of further prompts; 0: the step is round 0."""

    def further_prompts(self, step: int, rounds: Sequence[Sequence[bool]]) -> int:
        """As many as places are open. See `SelectionRule`."""
        if len(rounds) > self.max_refills:
            return 0
        with_signal = sum(sum(signals) for signals in rounds)
        return max(0, len(rounds[0]) - with_signal)

    def choose(self, step: int, rounds: Sequence[Sequence[bool]]) -> list[tuple[int, int]]:
        """A group of round 0 without signal is replaced by the next group with signal of the
        further rounds, while there is one. See `SelectionRule`."""
        step_groups = self._replaced(rounds)
        without_signal = sum(not rounds[number][index] for number, index in step_groups)
        if without_signal and self.max_refills:
            logger.warning(
                "step %d: %d of %d groups have equal rewards after %d rounds of further prompts "
                "(rollout.max_refills %d)",
                step,
                without_signal,
                len(step_groups),
                len(rounds) - 1,
                self.max_refills,
            )
        return step_groups

    @staticmethod
    def _replaced(rounds: Sequence[Sequence[bool]]) -> list[tuple[int, int]]:
        further = (
            (number, index)
            for number, signals in enumerate(rounds[1:], start=1)
            for index, signal in enumerate(signals)
            if signal
        )
        return [
            (0, index) if signal else next(further, (0, index))
            for index, signal in enumerate(rounds[0])
        ]
