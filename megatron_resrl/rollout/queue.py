"""Rollouts in the order in which they are trained on, generated up to some steps ahead."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from megatron_resrl.config.schema import Recipe
from megatron_resrl.data.prompts import Prompt
from megatron_resrl.data.sampler import PromptSampler
from megatron_resrl.errors import RunError
from megatron_resrl.rollout.collect import Sample
from megatron_resrl.rollout.collector import Collected, Collecting, Collector


class TooStale(RunError):
    """A response began with weights that are older than allowed."""

    common = True


class _InFlight(NamedTuple):
    """A step whose responses are being generated."""

    step: int
    indices: list[int]
    collecting: Collecting


class RolloutQueue:
    """Draws prompts, and lets the engine generate `max_staleness` steps ahead of training.

    When step s asks for its samples, generation of the steps up to s + `max_staleness` has begun,
    the last of them with the weights that s is going to train; so nothing trained on began with
    weights more than `max_staleness` updates old. With 0, generation and training alternate.
    """

    def __init__(
        self,
        recipe: Recipe,
        collector: Collector,
        prompts: Sequence[Prompt],
        sampler: PromptSampler,
        in_flight: Iterable[Sequence[int]] = (),
    ) -> None:
        """
        Args:
            recipe: Settings.
            collector: Turns prompts into graded groups.
            prompts: The training data.
            sampler: Deals them.
            in_flight: What `in_flight` returned in the run that is continued.
        """
        self._last_step = recipe.steps
        self._max_staleness = recipe.rollout.max_staleness
        self._replays = recipe.rollout.replay is not None
        self._collector = collector
        self._prompts = prompts
        self.sampler = sampler
        self._prompts_to_replay = deque(list(indices) for indices in in_flight)
        self._in_flight: deque[_InFlight] = deque()

    def next(self, step: int) -> Collected:
        """The graded groups of a step; steps are asked for in order. Collective.

        Raises:
            TooStale: The engine broke its promise about weights.
        """
        first = self._in_flight[-1].step + 1 if self._in_flight else step
        for ahead in range(first, min(step + self._max_staleness, self._last_step) + 1):
            self._begin(ahead)
        oldest = self._in_flight.popleft()
        collected = self._collector.finish(oldest.collecting, self._draw)
        metrics = collected.metrics | self._staleness(step, collected.samples)
        metrics["data/epoch"] = self.sampler.epochs
        return Collected(collected.samples, metrics)

    def in_flight(self) -> list[list[int]]:
        """The prompts dealt to steps that are not trained yet, for a run that continues."""
        return [*(each.indices for each in self._in_flight), *self._prompts_to_replay]

    def _begin(self, step: int) -> None:
        indices = (
            self._prompts_to_replay.popleft()
            if self._prompts_to_replay
            else self.sampler.next_batch()
        )
        batch = [self._prompts[index] for index in indices]
        self._in_flight.append(_InFlight(step, indices, self._collector.begin(step, batch)))

    def _draw(self, count: int) -> list[Prompt]:
        return [self._prompts[index] for index in self.sampler.draw(count)]

    def _staleness(self, step: int, samples: Sequence[Sample]) -> dict[str, float]:
        """Updates between the weights that drew the first token and those being trained."""
        ages = [step - 1 - sample.response.weight_versions[0] for sample in samples]
        crossed = sum(len(set(sample.response.weight_versions)) > 1 for sample in samples)
        if max(ages) > self._max_staleness and not self._replays:
            raise TooStale(
                f"step {step}: a response began with weights {max(ages)} updates old; "
                f"rollout.max_staleness is {self._max_staleness}"
            )
        return {
            "rollout/staleness_mean": sum(ages) / len(ages),
            "rollout/staleness_max": float(max(ages)),
            "rollout/mixed_version_fraction": crossed / len(samples),
        }
