"""One step's rollouts: generated or read back, graded, refilled; whole groups on every rank."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from megatron_resrl.checkpoint import RolloutLog
from megatron_resrl.checkpoint.first_rank import on_first_rank
from megatron_resrl.config.schema import Recipe
from megatron_resrl.data.prompts import Prompt
from megatron_resrl.errors import RunError
from megatron_resrl.observe.timers import PhaseTimers
from megatron_resrl.rollout.actor import Actor
from megatron_resrl.rollout.collect import Sample, grade_responses, handle_overlong
from megatron_resrl.rollout.engine import OnGroup, PendingRollout, Response, SamplingParams
from megatron_resrl.rollout.sampling import TRAINING_STREAM
from megatron_resrl.training.phases import phase

logger = logging.getLogger(__name__)

Draw = Callable[[int], list[Prompt]]
"""Hands out so many further prompts, the same on all ranks."""


class NotReplayable(RunError):
    """The recorded rollouts are not those of this run."""

    common = True


@dataclass(frozen=True)
class Collecting:
    """One round of a step, on its way."""

    step: int
    round: int
    prompts: list[Prompt]
    finished: dict[int, list[Response]]
    """Groups that are there already, by the index of their prompt."""
    missing: list[int]
    """Indices of the prompts being answered."""
    pending: PendingRollout | None
    """Their responses."""
    failures: list[OSError]
    """Of keeping finished groups, on rank 0."""


@dataclass(frozen=True)
class Collected:
    """What a step is trained on."""

    samples: list[Sample]
    """Whole groups, numbered from 0."""
    metrics: dict[str, float]


class Collector:
    """Turns prompts into graded groups.

    Finished groups are kept on disk as soon as they are there and used again by a run that was
    killed; with `rollout.record` they are also kept for good, and `rollout.replay` reads those
    instead of asking an engine. With `rollout.dynamic_sampling`, groups of equal rewards are
    replaced by groups of further prompts (DAPO, arXiv 2503.14476, section 3.2), as many rounds as
    `rollout.max_refills` allows.
    """

    def __init__(self, recipe: Recipe, actor: Actor, log: RolloutLog, timers: PhaseTimers) -> None:
        """
        Args:
            recipe: Settings.
            actor: Answers and grades.
            log: Keeps finished groups of this run.
            timers: Phases are timed here.
        """
        settings = recipe.rollout
        self._recipe = recipe
        self._actor = actor
        self._timers = timers
        self._log = log if recipe.checkpoint.keep_rollouts and not settings.replay else None
        self._record = RolloutLog(Path(settings.record)) if settings.record else None
        self._replay = RolloutLog(Path(settings.replay)) if settings.replay else None
        self._sampling = SamplingParams(
            max_new_tokens=settings.max_response_length,
            stop_token_ids=actor.stop_token_ids,
            n=settings.group_size,
            temperature=settings.temperature,
            top_p=settings.top_p,
            top_k=settings.top_k,
        )

    def begin(self, step: int, prompts: Sequence[Prompt], round_: int = 0) -> Collecting:
        """Starts generating what is not on disk. Collective.

        Raises:
            NotReplayable: `rollout.replay` lacks the step, or has other prompts.
        """
        with phase(self._timers, "rollout"):
            finished = self._kept(step, round_, prompts)
            missing = [index for index in range(len(prompts)) if index not in finished]
            failures: list[OSError] = []
            pending = None
            if missing:
                pending = self._actor.player.begin(
                    [prompts[index] for index in missing],
                    self._sampling,
                    seed=(self._recipe.seed, TRAINING_STREAM, step, *([round_] if round_ else [])),
                    indices=missing,
                    on_group=self._keeper(step, round_, prompts, missing, failures),
                )
            return Collecting(step, round_, list(prompts), finished, missing, pending, failures)

    def finish(self, collecting: Collecting, draw: Draw) -> Collected:
        """Waits, grades, and refills with prompts that `draw` hands out. Collective.

        Raises:
            CheckpointError: Finished groups cannot be kept.
            RewardError: A reward function failed.
            RunError: A response cannot be generated.
        """
        groups = self._graded(collecting)
        metrics = {}
        if self._recipe.rollout.dynamic_sampling:
            groups, metrics = self._refill(collecting.step, groups, draw)
        samples = [
            replace(sample, group=number) for number, group in enumerate(groups) for sample in group
        ]
        return Collected(samples, metrics)

    def _refill(
        self, step: int, first: list[list[Sample]], draw: Draw
    ) -> tuple[list[list[Sample]], dict[str, float]]:
        """As many groups as there were first, with a signal as far as the rounds allow."""
        groups, equal = _with_signal(first)
        generated, rounds = len(first), 0
        while len(groups) < len(first) and rounds < self._recipe.rollout.max_refills:
            rounds += 1
            prompts = draw(len(first) - len(groups))
            found, others = _with_signal(self._graded(self.begin(step, prompts, rounds)))
            groups, equal = groups + found, equal + others
            generated += len(prompts)
        short = len(first) - len(groups)
        if short:
            logger.warning(
                "step %d: %d of %d groups have equal rewards after %d rounds of replacement",
                step,
                short,
                len(first),
                rounds,
            )
        return groups + equal[:short], {
            "rollout/refill_rounds": float(rounds),
            "rollout/groups_generated": float(generated),
            "rollout/groups_without_signal": float(len(equal)),
            "rollout/reward_before_refill": _mean_reward(first),
        }

    def _graded(self, collecting: Collecting) -> list[list[Sample]]:
        """The groups of a round, in the order of its prompts."""
        finished = dict(collecting.finished)
        with phase(self._timers, "rollout"):
            if collecting.pending is not None:
                found = collecting.pending.result()
                finished |= dict(zip(collecting.missing, found, strict=True))
            self._settle(collecting, finished)
        responses = [finished[index] for index in range(len(collecting.prompts))]
        with phase(self._timers, "reward"):
            samples = grade_responses(
                collecting.prompts,
                responses,
                self._actor.grader,
                self._actor.tokenizer,
                self._recipe.reward,
            )
            samples = handle_overlong(
                samples, self._recipe.reward, self._recipe.rollout.max_response_length
            )
        groups: list[list[Sample]] = [[] for _ in collecting.prompts]
        for sample in samples:
            groups[sample.group].append(sample)
        return groups

    def _kept(self, step: int, round_: int, prompts: Sequence[Prompt]) -> dict[int, list[Response]]:
        """Groups on disk that answer these prompts."""
        log = self._replay or self._log
        if log is None:
            return {}
        found = log.read(step, round_)
        kept = {
            index: responses
            for index, (prompt_ids, responses) in found.items()
            if index < len(prompts)
            and prompt_ids == prompts[index].token_ids
            and len(responses) == self._sampling.n
        }
        if self._replay and len(kept) < len(prompts):
            raise NotReplayable(_why_not(self._replay, step, round_, prompts, found))
        return kept

    def _keeper(
        self,
        step: int,
        round_: int,
        prompts: Sequence[Prompt],
        missing: Sequence[int],
        failures: list[OSError],
    ) -> OnGroup | None:
        """What is done with a group when it is complete."""
        log = self._log
        if log is None:
            return None

        def keep(place: int, responses: list[Response]) -> None:
            index = missing[place]
            try:
                log.write(step, round_, index, prompts[index].token_ids, responses)
            except OSError as error:
                failures.append(error)

        return keep

    def _settle(self, collecting: Collecting, finished: Mapping[int, list[Response]]) -> None:
        """Raises on all ranks what went wrong in keeping groups, and records the round."""

        def settle() -> None:
            if collecting.failures:
                raise collecting.failures[0]
            if self._record is None:
                return
            for index, responses in finished.items():
                prompt_ids = collecting.prompts[index].token_ids
                self._record.write(collecting.step, collecting.round, index, prompt_ids, responses)

        on_first_rank(settle)


def _with_signal(
    groups: Sequence[list[Sample]],
) -> tuple[list[list[Sample]], list[list[Sample]]]:
    """Groups whose rewards differ, and the others."""
    differ = [len({sample.reward for sample in group}) > 1 for group in groups]
    return (
        [group for group, signal in zip(groups, differ, strict=True) if signal],
        [group for group, signal in zip(groups, differ, strict=True) if not signal],
    )


def _mean_reward(groups: Sequence[list[Sample]]) -> float:
    rewards = [sample.reward for group in groups for sample in group]
    return sum(rewards) / len(rewards)


def _why_not(
    replay: RolloutLog,
    step: int,
    round_: int,
    prompts: Sequence[Prompt],
    found: Mapping[int, tuple[tuple[int, ...], list[Response]]],
) -> str:
    """What is missing or different in the recording of a round."""
    where = f"rollout.replay = {str(replay.directory)!r}, step {step}, round {round_}"
    if not found:
        return f"{where}: nothing is recorded there"
    for index, prompt in enumerate(prompts):
        if index not in found:
            return f"{where}: group {index} of {len(prompts)} is missing"
        if found[index][0] != prompt.token_ids:
            return (
                f"{where}: group {index} answers another prompt than this run asks; replay with "
                "the data, the seed and the tokenizer of the recording"
            )
        if len(found[index][1]) != len(found[0][1]):
            break
    return f"{where}: a group has {len(found[0][1])} responses; set rollout.group_size to it"
