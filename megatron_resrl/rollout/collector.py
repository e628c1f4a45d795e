"""A step's groups: generated, or found on disk; graded; refilled where they teach nothing.

Dynamic sampling (DAPO, arXiv 2503.14476): a group whose rewards are all equal has no advantage. Its
place in the step goes to the next group with signal among groups of further prompts, drawn round by
round, as many as places are open; a place that stays open keeps its first group.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from megatron_resrl.config.schema import Recipe
from megatron_resrl.data.prompts import Prompt
from megatron_resrl.observe.phases import phase
from megatron_resrl.observe.timers import PhaseTimers
from megatron_resrl.platform.distributed import run_on_rank_zero
from megatron_resrl.policy.finite import LogitsNotFinite
from megatron_resrl.rollout.collect import Sample, grade_responses, penalty_of
from megatron_resrl.rollout.engine import PendingRollout, Response, SamplingParams
from megatron_resrl.rollout.environments.metrics import episode_metrics
from megatron_resrl.rollout.finite import require_finite_responses
from megatron_resrl.rollout.group_table import Group
from megatron_resrl.rollout.log import RolloutLog, run_identity
from megatron_resrl.rollout.recording import Recording, RecordingError, sampling_settings
from megatron_resrl.rollout.sampling import TRAINING_STREAM
from megatron_resrl.rollout.worker import RolloutWorker

logger = logging.getLogger(__name__)

Draw = Callable[[int], list[Prompt]]
"""The next so many prompts of the sampler, the same on all ranks."""


@dataclass(frozen=True)
class _Round:
    """Prompts whose responses are being generated, or known already."""

    number: int
    prompts: Sequence[Prompt]
    known: dict[int, list[Response]]
    """Index of a prompt -> its responses, from disk."""
    generated: Sequence[int]
    """Indices of those that are generated: at least all others."""
    pending: PendingRollout | None
    """Their responses; None: there are none."""


@dataclass(frozen=True)
class Collecting:
    """A step whose responses are under way."""

    step: int
    on_disk: list[Group]
    """Finished groups of all rounds, that a stopped run or a recording has left."""
    first: _Round


@dataclass(frozen=True)
class Collected:
    """What a step trains on, the same on all ranks."""

    samples: list[Sample]
    """Group by group, numbered from 0; always `rollout.prompts_per_step` groups."""
    metrics: dict[str, float]


@dataclass(frozen=True)
class _Graded:
    """A group with its verdicts."""

    round: int
    index: int
    samples: list[Sample]

    @property
    def has_signal(self) -> bool:
        """Whether it can teach something: unequal rewards, and a response that is not masked."""
        first = self.samples[0].reward
        unequal = any(sample.reward != first for sample in self.samples)
        return unequal and not all(sample.masked for sample in self.samples)

    def record(self, number: int | None) -> Group:
        """As it is kept in a recording."""
        prompt = self.samples[0].prompt
        responses = [sample.response for sample in self.samples]
        return Group(self.round, self.index, prompt.token_ids, responses, number)


class Collector:
    """Collects the groups of the steps of a run.

    The collection of a step may begin before that of the step before has finished: nothing is
    shared between steps but the files. Every rank makes the same calls in the same order.
    """

    def __init__(
        self, recipe: Recipe, worker: RolloutWorker, rollout_log: RolloutLog, timers: PhaseTimers
    ) -> None:
        """Collective.

        Args:
            recipe: All settings.
            worker: Generates and grades.
            rollout_log: Finished groups of the run.
            timers: Phases "rollout" and "reward" are timed here.

        Raises:
            RecordingError: `rollout.record` names a recording of another run.
        """
        self.recipe = recipe
        self.worker = worker
        self.timers = timers
        self._log = rollout_log
        settings = recipe.rollout
        self._replay = Recording(settings.replay) if settings.replay else None
        self._record = Recording(settings.record) if settings.record else None
        self._sampling = SamplingParams(
            max_new_tokens=settings.max_response_length,
            stop_token_ids=worker.stop_token_ids,
            n=settings.group_size,
            temperature=settings.temperature,
            top_p=settings.top_p,
            top_k=settings.top_k,
        )
        if self._record is not None:
            run_on_rank_zero(self._require_own_recording)

    def begin(self, step: int, prompts: Sequence[Prompt]) -> Collecting:
        """Starts the generation of what is not on disk yet. Collective.

        Returns at once if the engine can generate while the caller trains.

        Args:
            step: The training step.
            prompts: `rollout.prompts_per_step` of them, the same on all ranks.

        Raises:
            RecordingError: Another step or other prompts were recorded.
        """
        with phase(self.timers, "rollout"):
            on_disk = self._read(step)
            return Collecting(step, on_disk, self._begin_round(step, 0, prompts, on_disk))

    def finish(self, collecting: Collecting, draw: Draw) -> Collected:
        """Waits, grades, refills and shapes. Collective.

        Args:
            collecting: From `begin`; finished once.
            draw: Gives further prompts.

        Raises:
            CheckpointError: A finished group could not be kept.
            RecordingError: The step could not be recorded, or other prompts were.
            RewardError: A reward function failed.
        """
        step = collecting.step
        rounds = [self._grade(collecting.first)]
        while count := self._refill(collecting, rounds):
            with phase(self.timers, "rollout"):
                further = self._begin_round(step, len(rounds), draw(count), collecting.on_disk)
            rounds.append(self._grade(further))
        if self._replay is not None:
            chosen = self._recorded_choice(collecting, rounds)
        else:
            chosen = choose_groups([[group.has_signal for group in each] for each in rounds])
        if self._record is not None:
            with phase(self.timers, "rollout"):
                run_on_rank_zero(lambda: self._write_recording(step, rounds, chosen))
        groups = [rounds[number][index] for number, index in chosen]
        samples = [
            replace(sample, group=number)
            for number, group in enumerate(groups)
            for sample in group.samples
        ]
        metrics = self._metrics(rounds, groups)
        with phase(self.timers, "rollout"):
            self.worker.engine.sleep()
        silent = int(metrics["rollout/groups_without_signal"])
        if silent and self.recipe.rollout.dynamic_sampling:
            logger.warning(
                "step %d: %d of %d groups have equal rewards after %d rounds of further prompts "
                "(rollout.max_refills %d)",
                step,
                silent,
                len(groups),
                len(rounds) - 1,
                self.recipe.rollout.max_refills,
            )
        return Collected(samples, metrics)

    def _read(self, step: int) -> list[Group]:
        if self._replay is not None:
            return run_on_rank_zero(lambda: self._replay.read(step))
        return self._log.read(step) if self.recipe.checkpoint.keep_rollouts else []

    def _begin_round(
        self, step: int, number: int, prompts: Sequence[Prompt], on_disk: Sequence[Group]
    ) -> _Round:
        finished = {group.index: group for group in on_disk if group.round == number}
        if self._replay is not None:
            self._require_same_prompts(step, number, prompts, finished)
        known = {
            index: finished[index].responses
            for index, prompt in enumerate(prompts)
            if index in finished and finished[index].prompt_ids == prompt.token_ids
        }
        missing = [index for index in range(len(prompts)) if index not in known]
        if known and self._replay is None:
            logger.info(
                "step %d, round %d: %d of %d groups were finished before and are taken from %s",
                step,
                number,
                len(known),
                len(prompts),
                self._log.directory,
            )
        if not missing:
            return _Round(number, prompts, known, missing, None)
        generated = list(range(len(prompts))) if _finish_together(self.recipe) else missing

        def keep(place: int, responses: list[Response]) -> None:
            index = generated[place]
            if index not in known:
                self._log.append(step, Group(number, index, prompts[index].token_ids, responses))

        pending = self.worker.player.begin(
            [prompts[index] for index in generated],
            self._sampling,
            seed=(self.recipe.seed, TRAINING_STREAM, step, number),
            indices=generated,
            on_group=keep if self.recipe.checkpoint.keep_rollouts else None,
        )
        return _Round(number, prompts, known, generated, pending)

    def _grade(self, under_way: _Round) -> list[_Graded]:
        """Waits for a round and grades its groups, in order."""
        responses: dict[int, list[Response]] = {}
        if under_way.pending is not None:
            with phase(self.timers, "rollout"):
                fresh = under_way.pending.result()
                responses |= zip(under_way.generated, fresh, strict=True)
                self._log.confirm()
        responses |= under_way.known
        self._require_finite(under_way, [responses[i] for i in range(len(under_way.prompts))])
        with phase(self.timers, "reward"):
            samples = grade_responses(
                under_way.prompts,
                [responses[index] for index in range(len(under_way.prompts))],
                self.worker.grader,
                self.worker.tokenizer,
                self.recipe.reward,
                length_limit=self.recipe.rollout.max_response_length,
            )
        members: list[list[Sample]] = [[] for _ in under_way.prompts]
        for sample in samples:
            members[sample.group].append(sample)
        return [_Graded(under_way.number, index, each) for index, each in enumerate(members)]

    def _require_finite(self, under_way: _Round, responses: list[list[Response]]) -> None:
        try:
            require_finite_responses(
                under_way.prompts,
                responses,
                self.worker.policy,
                self.recipe.model.path,
                phase="rollout of training",
            )
        except LogitsNotFinite:
            self._log.discard()  # A run with mended weights must not read them again.
            raise

    def _refill(self, collecting: Collecting, rounds: Sequence[Sequence[_Graded]]) -> int:
        """How many further prompts the step needs; a replayed one takes as many as it took."""
        if self._replay is not None:
            return sum(group.round == len(rounds) for group in collecting.on_disk)
        settings = self.recipe.rollout
        if not settings.dynamic_sampling or len(rounds) > settings.max_refills:
            return 0
        with_signal = sum(group.has_signal for each in rounds for group in each)
        return max(0, len(rounds[0]) - with_signal)

    def _metrics(
        self, rounds: Sequence[Sequence[_Graded]], groups: Sequence[_Graded]
    ) -> dict[str, float]:
        reward, limit = self.recipe.reward, self.recipe.rollout.max_response_length
        first = [sample for group in rounds[0] for sample in group.samples]
        samples = [sample for group in groups for sample in group.samples]
        penalties = [penalty_of(sample.response, reward, limit) for sample in samples]
        lengths = [sample.response.drawn for sample in first]
        metrics = {
            "rollout/refill_rounds": float(len(rounds) - 1),
            "rollout/groups_generated": float(sum(len(each) for each in rounds)),
            "rollout/groups_without_signal": float(sum(not group.has_signal for group in groups)),
            "reward/mean_before_refill": sum(sample.reward for sample in first) / len(first),
            "response/length_mean_before_refill": sum(lengths) / len(first),
            "reward/overlong_masked": sum(sample.masked for sample in samples) / len(samples),
            "reward/overlong_penalty_mean": sum(penalties) / len(samples),
        }
        if self.recipe.rollout.environment is not None:
            metrics |= episode_metrics([sample.response for sample in samples])
        return metrics

    def _require_own_recording(self) -> None:
        for step in self._record.steps():
            if self._record.run(step) != self._log.identity:
                raise RecordingError(
                    f"rollout.record {str(self._record.directory)!r} holds step {step} of a run "
                    "with other settings; give another directory or remove it"
                )

    def _write_recording(
        self,
        step: int,
        rounds: Sequence[Sequence[_Graded]],
        chosen: Sequence[tuple[int, int]],
    ) -> None:
        number_of = {key: number for number, key in enumerate(chosen)}
        groups = [
            group.record(number_of.get((group.round, group.index)))
            for each in rounds
            for group in each
        ]
        self._record.write(
            step,
            groups,
            run=run_identity(self.recipe),
            sampling=sampling_settings(self.recipe.rollout),
        )

    def _require_same_prompts(
        self, step: int, number: int, prompts: Sequence[Prompt], recorded: dict[int, Group]
    ) -> None:
        path = self._replay.path(step)
        if sorted(recorded) != list(range(len(prompts))):
            raise RecordingError(
                f"step {step}, round {number}: {path} holds {len(recorded)} groups, this run "
                f"has {len(prompts)} prompts; replay with the recorded rollout.prompts_per_step"
            )
        for index, prompt in enumerate(prompts):
            if recorded[index].prompt_ids != prompt.token_ids:
                raise RecordingError(
                    f"step {step}, round {number}, prompt {index}: {path} holds responses to "
                    f"another prompt, beginning with tokens {recorded[index].prompt_ids[:8]}; this "
                    f"run has record {prompt.record.index} of {prompt.record.data_source}, tokens "
                    f"{prompt.token_ids[:8]}. Replay with the recorded data, seed and tokenizer"
                )

    def _recorded_choice(
        self, collecting: Collecting, rounds: Sequence[Sequence[_Graded]]
    ) -> list[tuple[int, int]]:
        keys = {group.number: group.key for group in collecting.on_disk if group.number is not None}
        if sorted(keys) != list(range(len(rounds[0]))):
            path = self._replay.path(collecting.step)
            raise RecordingError(
                f"{path}: column group numbers {len(keys)} groups, not 0 to {len(rounds[0]) - 1}"
            )
        return [keys[number] for number in sorted(keys)]


def _finish_together(recipe: Recipe) -> bool:
    """Whether all groups of a round are there at the same moment.

    Then a part of them is on disk only if the process was killed within the milliseconds in which
    they were written. The whole round is decoded again, in the same batches: the last bit of a
    log-probability depends on what is decoded beside it.
    """
    return recipe.rollout.engine == "megatron" and recipe.rollout.environment is None


def choose_groups(has_signal: Sequence[Sequence[bool]]) -> list[tuple[int, int]]:
    """Which groups make the step.

    Args:
        has_signal: For each round, whether each of its groups can teach something. Round 0 has as
            many groups as the step.

    Returns:
        (round, index) of the step's groups. A group of round 0 without signal is replaced by the
        next one with signal of the further rounds, while there is one.
    """
    further = (
        (number, index)
        for number, signals in enumerate(has_signal[1:], start=1)
        for index, signal in enumerate(signals)
        if signal
    )
    return [
        (0, index) if signal else next(further, (0, index))
        for index, signal in enumerate(has_signal[0])
    ]
