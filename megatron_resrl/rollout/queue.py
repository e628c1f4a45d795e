"""Rollouts in the order in which they are trained on, generated up to some steps ahead."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from megatron_resrl.config.schema import RolloutConfig
from megatron_resrl.data.prompts import Prompt
from megatron_resrl.data.sampler import PromptSampler
from megatron_resrl.errors import RunError
from megatron_resrl.rollout.collect import Sample
from megatron_resrl.rollout.collector import Collected, Collector, RoundInFlight


class TooStale(RunError):
    """A response began with weights that are older than allowed."""

    common = True


class _StepInFlight(NamedTuple):
    """A step whose responses are being generated."""

    step: int
    prompt_indices: list[int]
    first_round: RoundInFlight


class RolloutQueue:
    """Draws prompts, and lets the engine generate `max_staleness` steps ahead of training.

    When step s asks for its samples, generation of the steps up to s + `max_staleness` has begun,
    the last of them with the weights that step s is going to train; so no response that is trained
    on began with weights more than `max_staleness` updates old. With 0, generation and training
    alternate.
    """

    def __init__(
        self,
        collector: Collector,
        prompts: Sequence[Prompt],
        sampler: PromptSampler,
        *,
        steps: int,
        rollout: RolloutConfig,
        in_flight: Iterable[Sequence[int]] = (),
    ) -> None:
        """
        Args:
            collector: Turns prompts into graded groups.
            prompts: The training data.
            sampler: Draws indices of prompts.
            steps: The last step; nothing is generated for later ones.
            rollout: `max_staleness`; with `replay` the responses are as old as they were recorded.
            in_flight: What `in_flight` returned in the run that is continued.
        """
        self._last_step = steps
        self._max_staleness = rollout.max_staleness
        self._replays = rollout.replay is not None
        self._collector = collector
        self._prompts = prompts
        self.sampler = sampler
        self._to_begin_again = deque(list(indices) for indices in in_flight)
        self._in_flight: deque[_StepInFlight] = deque()

    def next(self, step: int) -> Collected:
        """The graded groups of a step; steps are asked for in order. Collective.

        Raises:
            TooStale: The engine answered with weights older than allowed.
        """
        first = self._in_flight[-1].step + 1 if self._in_flight else step
        for ahead in range(first, min(step + self._max_staleness, self._last_step) + 1):
            self._begin(ahead)
        oldest = self._in_flight.popleft()
        collected = self._collector.finish(oldest.first_round, self._draw)
        metrics = collected.metrics | self._staleness(step, collected.samples)
        metrics["data/epoch"] = self.sampler.epochs
        return Collected(collected.samples, metrics)

    def in_flight(self) -> list[list[int]]:
        """Indices of the prompts of steps that are not trained yet, for a run that continues."""
        return [*(step.prompt_indices for step in self._in_flight), *self._to_begin_again]

    def _begin(self, step: int) -> None:
        again = self._to_begin_again
        indices = again.popleft() if again else self.sampler.next_batch()
        batch = [self._prompts[index] for index in indices]
        self._in_flight.append(_StepInFlight(step, indices, self._collector.begin(step, batch)))

    def _draw(self, count: int) -> list[Prompt]:
        return [self._prompts[index] for index in self.sampler.draw(count)]

    def _staleness(self, step: int, samples: Sequence[Sample]) -> dict[str, float]:
        """Updates between the weights of the first generated token and those that are trained."""
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
