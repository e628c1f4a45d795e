"""The groups of a step: generated and graded, in as many rounds as the selection rule asks for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from megatron_resrl.config.schema import RewardConfig
from megatron_resrl.data.prompts import Prompt
from megatron_resrl.observe.phases import phase
from megatron_resrl.observe.timers import PhaseTimers
from megatron_resrl.rewards.combined import CombinedGrader
from megatron_resrl.rewards.grader import ResponseGrader
from megatron_resrl.rewards.parts import named_functions
from megatron_resrl.rewards.registry import ASKS_SERVERS
from megatron_resrl.rollout.collect import Sample, grade_responses, part_metrics, penalty_of
from megatron_resrl.rollout.engine import (
    GenerationRequest,
    PendingRollout,
    Response,
    RolloutEngine,
    SamplingParams,
    TrainingRound,
)
from megatron_resrl.rollout.environments.metrics import episode_metrics
from megatron_resrl.rollout.group_table import Group
from megatron_resrl.rollout.recording import Recorder
from megatron_resrl.rollout.sampling import TRAINING_STREAM
from megatron_resrl.rollout.selection import SelectionRule

DrawPrompts = Callable[[int], list[Prompt]]
"""The next so many prompts of the sampler, the same on all ranks."""
RequireFinite = Callable[[Sequence[Prompt], Sequence[Sequence[Response]]], None]
"""Refuses responses whose log-probabilities are not numbers. Collective."""


class RoundInFlight(NamedTuple):
    """Prompts of a step whose responses are being generated."""

    name: TrainingRound
    prompts: Sequence[Prompt]
    pending: PendingRollout


@dataclass(frozen=True)
class Collected:
    """What a step trains on, the same on all ranks."""

    samples: list[Sample]
    """Group by group, numbered from 0; always `rollout.prompts_per_step` groups."""
    metrics: dict[str, float]


@dataclass(frozen=True)
class _GradedGroup:
    """A group with its rewards."""

    round: int
    index: int
    samples: list[Sample]

    @property
    def has_signal(self) -> bool:
        """Whether the policy can learn from it: rewards differ, and a response is not masked."""
        first = self.samples[0].reward
        unequal = any(sample.reward != first for sample in self.samples)
        return unequal and not all(sample.excluded for sample in self.samples)

    def record(self, number: int | None) -> Group:
        """Its row in a recording."""
        prompt = self.samples[0].prompt
        responses = [sample.response for sample in self.samples]
        scores = tuple(sample.score for sample in self.samples)
        return Group(self.round, self.index, prompt.token_ids, responses, number, scores)


@dataclass(frozen=True)
class Collector:
    """Collects the groups of the steps of a run.

    Rollouts of a step may begin before those of the step before are finished: steps share nothing
    but the files of the engine. Every rank makes the same calls in the same order.
    """

    engine: RolloutEngine
    """Generates, replays or resumes."""
    sampling: SamplingParams
    selection: SelectionRule
    grader: ResponseGrader | CombinedGrader
    tokenizer: Any
    reward: RewardConfig
    require_finite: RequireFinite
    timers: PhaseTimers
    """Phases "rollout" and "reward" are timed here."""
    seed: int
    recorder: Recorder | None = None
    plays_episodes: bool = False
    """Responses are episodes of an environment: their turns are counted."""

    def begin(self, step: int, prompts: Sequence[Prompt]) -> RoundInFlight:
        """Starts the generation of a step. Collective.

        Returns at once if the engine can generate while the caller trains.

        Args:
            step: The training step.
            prompts: `rollout.prompts_per_step` of them, the same on all ranks.

        Raises:
            RecordingError: The step is to be replayed, and other prompts were recorded.
        """
        return self._begin_round(TrainingRound(step, 0), prompts)

    def finish(self, first: RoundInFlight, draw: DrawPrompts) -> Collected:
        """Waits, grades, refills and selects; then lets the engine sleep. Collective.

        Args:
            first: From `begin`; finished once.
            draw: Gives further prompts.

        Raises:
            RunFileError: A finished group could not be kept or recorded.
            LogitsNotFinite: A response has a log-probability that is not a number.
            RecordingError: The step is to be replayed, and other prompts were recorded.
            RewardError: A reward function failed.
        """
        step = first.name.step
        rounds = [self._grade(first)]
        signals = [[group.has_signal for group in rounds[0]]]
        while count := self.selection.further_prompts(step, signals):
            further = self._begin_round(TrainingRound(step, len(rounds)), draw(count))
            rounds.append(self._grade(further))
            signals.append([group.has_signal for group in rounds[-1]])
        chosen = self.selection.choose(step, signals)
        groups = [rounds[number][index] for number, index in chosen]
        self._record(step, rounds, chosen)
        with phase(self.timers, "rollout"):
            self.engine.sleep()
        samples = [
            replace(sample, group=number)
            for number, group in enumerate(groups)
            for sample in group.samples
        ]
        return Collected(samples, self._metrics(rounds, groups))

    def _begin_round(self, name: TrainingRound, prompts: Sequence[Prompt]) -> RoundInFlight:
        seed = (self.seed, TRAINING_STREAM, name.step, name.number)
        request = GenerationRequest.of_prompts(prompts, self.sampling, seed, name)
        with phase(self.timers, "rollout"):
            return RoundInFlight(name, prompts, self.engine.begin(request))

    def _grade(self, in_flight: RoundInFlight) -> list[_GradedGroup]:
        """Waits for a round and grades its groups, in order."""
        with phase(self.timers, "rollout"):
            responses = in_flight.pending.result()
        self.require_finite(in_flight.prompts, responses)
        with phase(self.timers, "reward"):
            samples = grade_responses(
                in_flight.prompts,
                responses,
                self.grader,
                self.tokenizer,
                self.reward,
                length_limit=self.sampling.max_new_tokens,
            )
        members: list[list[Sample]] = [[] for _ in in_flight.prompts]
        for sample in samples:
            members[sample.group].append(sample)
        return [
            _GradedGroup(in_flight.name.number, index, group) for index, group in enumerate(members)
        ]

    def _record(
        self,
        step: int,
        rounds: Sequence[Sequence[_GradedGroup]],
        chosen: Sequence[tuple[int, int]],
    ) -> None:
        """Records all groups of all rounds; those of the step with their number in it."""
        if self.recorder is None:
            return
        number_of = {key: number for number, key in enumerate(chosen)}
        groups = [
            group.record(number_of.get((group.round, group.index)))
            for groups_of_round in rounds
            for group in groups_of_round
        ]
        with phase(self.timers, "rollout"):
            self.recorder.write(step, groups)

    def _metrics(
        self, rounds: Sequence[Sequence[_GradedGroup]], groups: Sequence[_GradedGroup]
    ) -> dict[str, float]:
        first = [sample for group in rounds[0] for sample in group.samples]
        samples = [sample for group in groups for sample in group.samples]
        penalties = [
            penalty_of(sample.response, self.reward, self.sampling.max_new_tokens)
            for sample in samples
        ]
        lengths = [sample.response.num_generated_tokens for sample in first]
        metrics = {
            "rollout/refill_rounds": float(len(rounds) - 1),
            "rollout/groups_generated": float(sum(len(groups) for groups in rounds)),
            "rollout/groups_without_signal": float(sum(not group.has_signal for group in groups)),
            "reward/mean_before_refill": sum(sample.reward for sample in first) / len(first),
            "response/length_mean_before_refill": sum(lengths) / len(first),
            "reward/overlong_masked": sum(sample.excluded for sample in samples) / len(samples),
            "reward/overlong_penalty_mean": sum(penalties) / len(samples),
        }
        metrics |= part_metrics(samples)
        if any(name in ASKS_SERVERS for name in named_functions(self.reward)):
            metrics["reward/unanswered"] = float(sum(sample.unanswered for sample in samples))
        if self.plays_episodes:
            metrics |= episode_metrics([sample.response for sample in samples])
        return metrics
