"""Responses -> graded samples, whole groups on every rank."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch.distributed as dist

from megatron_resrl.config.schema import RewardConfig
from megatron_resrl.data.packing import TokenSequence
from megatron_resrl.data.prompts import Prompt
from megatron_resrl.platform.distributed import gather_objects
from megatron_resrl.rewards.grader import Grade, Grader, GradingTask, RewardError
from megatron_resrl.rewards.shaping import length_scaled, overlong_penalty
from megatron_resrl.rollout.engine import Response


@dataclass(frozen=True)
class Sample:
    """One graded response of a group."""

    group: int
    """Index of the prompt in the step."""
    prompt: Prompt
    response: Response
    text: str
    """The decoded response, of several turns the last; for graders and people. The loss uses the
    token ids."""
    score: float
    """The environment's, otherwise the verifier's."""
    reward: float
    """The score after length scaling and penalties; what advantages are made of."""
    timed_out: bool
    """The grader did not finish, and the score is 0 for that."""
    transcript: str | None = None
    """All turns and what the environment said between them, special tokens included; None: one
    turn."""

    @property
    def tokens(self) -> TokenSequence:
        """Prompt and response ids as the policy is trained on them."""
        response = self.response
        return TokenSequence(self.prompt.token_ids, response.token_ids, response.response_mask)


def grade_responses(
    prompts: Sequence[Prompt],
    responses: Sequence[Sequence[Response]],
    grader: Grader,
    tokenizer: Any,
    reward: RewardConfig,
) -> list[Sample]:
    """Grades the responses that have no score yet, shared out over the ranks. Collective.

    Args:
        prompts: Of the step, the same on all ranks.
        responses: For each prompt its responses, the same on all ranks.
        grader: This rank's grader processes.
        tokenizer: Decodes responses.
        reward: Length scaling.

    Returns:
        All samples, group by group, the same on all ranks.

    Raises:
        RewardError: On every rank, if a reward function failed on any of them.
    """
    pairs = [(group, response) for group, several in enumerate(responses) for response in several]
    texts = [
        tokenizer.decode(response.last_turn, skip_special_tokens=True) for _, response in pairs
    ]
    tasks = [
        GradingTask(
            response=text,
            ground_truth=prompts[group].record.ground_truth,
            prompt=prompts[group].record.messages[-1]["content"],
            data_source=prompts[group].record.data_source,
            extra=prompts[group].record.extra,
            sample=f"prompt {prompts[group].record.index}",
        )
        for (group, response), text in zip(pairs, texts, strict=True)
        if response.score is None
    ]
    graded = iter(_grade_over_ranks(tasks, grader))
    grades = [
        next(graded) if response.score is None else Grade(response.score, timed_out=False)
        for _, response in pairs
    ]
    return [
        Sample(
            group=group,
            prompt=prompts[group],
            response=response,
            text=text,
            score=grade.score,
            reward=_shaped(grade.score, response, reward),
            timed_out=grade.timed_out,
            transcript=_transcript(response, tokenizer),
        )
        for (group, response), text, grade in zip(pairs, texts, grades, strict=True)
    ]


def handle_overlong(
    samples: Sequence[Sample], reward: RewardConfig, max_response_length: int
) -> list[Sample]:
    """Does with cut-off responses what `reward.overlong` says.

    Masked ones keep their reward in their group's statistics and count among the responses of the
    loss's mean, with no token of their own (as DAPO's overlong filtering, arXiv 2503.14476, and
    TRL's `mask_truncated_completions`); for the subspace they are not there.
    """
    if reward.overlong == "mask":
        return [_masked(each) if _cut_off(each) else each for each in samples]
    if reward.overlong == "penalize":
        return [
            replace(
                sample,
                reward=sample.reward
                + overlong_penalty(
                    len(sample.response.token_ids),
                    limit=max_response_length,
                    buffer=reward.overlong_buffer,
                    penalty=reward.overlong_penalty,
                ),
            )
            for sample in samples
        ]
    return list(samples)


def _cut_off(sample: Sample) -> bool:
    return sample.response.finish_reason == "length"


def _masked(sample: Sample) -> Sample:
    """The sample with no token that anything is learned from."""
    nothing = (False,) * len(sample.response.token_ids)
    return replace(sample, response=replace(sample.response, response_mask=nothing))


def _grade_over_ranks(tasks: Sequence[GradingTask], grader: Grader) -> list[Grade]:
    rank, ranks = dist.get_rank(), dist.get_world_size()
    try:
        mine: list[Grade] | RewardError = grader.grade(tasks[rank::ranks])
    except RewardError as error:
        mine = error
    theirs = gather_objects(mine)
    for grades in theirs:
        if isinstance(grades, RewardError):
            raise grades
    return [theirs[index % ranks][index // ranks] for index in range(len(tasks))]


def _transcript(response: Response, tokenizer: Any) -> str | None:
    return None if response.response_mask is None else tokenizer.decode(response.token_ids)


def _shaped(score: float, response: Response, reward: RewardConfig) -> float:
    if not reward.length_scaling:
        return score
    return length_scaled(
        score,
        response.drawn,
        full_until=reward.length_full_until,
        floor_at=reward.length_floor_at,
        floor=reward.length_floor,
    )
