"""Responses -> graded samples, whole groups on every rank."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch.distributed as dist

from megatron_resrl.config.schema import RewardConfig
from megatron_resrl.data.prompts import Prompt
from megatron_resrl.platform.distributed import gather_objects
from megatron_resrl.policy.batches import TokenSequence
from megatron_resrl.rewards.combined import CombinedGrader
from megatron_resrl.rewards.grader import (
    Grade,
    GradingTask,
    ResponseGrader,
    RewardError,
    describe_sample,
)
from megatron_resrl.rewards.parts import described
from megatron_resrl.rewards.shaping import length_scaled, overlong_penalty
from megatron_resrl.rollout.engine import Response

logger = logging.getLogger(__name__)


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
    """The environment's, otherwise the verifier's; of several functions that of the first."""
    reward: float
    """The score, or the weighted sum of several functions' scores, after length scaling and
    overlong penalty; what advantages are made of."""
    timed_out: bool
    """The grader did not finish, and the score is 0 for that."""
    killed: bool = False
    """The grader ran out of memory or was killed, and the score is 0 for that."""
    transcript: str | None = None
    """All turns and what the environment said between them, special tokens included; None: one
    turn."""
    unanswered: bool = False
    """A server gave no score, and the score is 0 for that."""
    parts: Mapping[str, float] = field(default_factory=dict)
    """Of several functions: the score by each of those that judge the row."""
    excluded: bool = False
    """No part of the loss, of its denominators or of the subspace, though its reward counts in the
    group's statistics."""

    @property
    def tokens(self) -> TokenSequence:
        """Prompt and response ids as the policy is trained on them."""
        response = self.response
        return TokenSequence(self.prompt_ids, response.token_ids, response.response_mask)

    @property
    def prompt_ids(self) -> tuple[int, ...]:
        """The tokens before the response, with the environment's opening."""
        return self.response.prompt_ids(self.prompt.token_ids)

    @property
    def question(self) -> str:
        """The last message before the response, with the environment's opening."""
        return _question(self.prompt, self.response)


def grade_responses(
    prompts: Sequence[Prompt],
    responses: Sequence[Sequence[Response]],
    grader: ResponseGrader | CombinedGrader,
    tokenizer: Any,
    reward: RewardConfig,
    *,
    length_limit: int | None = None,
) -> list[Sample]:
    """Grades the responses that have no score yet, shared out over the ranks. Collective.

    Args:
        prompts: Of the step, the same on all ranks.
        responses: For each prompt its responses, the same on all ranks.
        grader: This rank's grader processes.
        tokenizer: Decodes responses.
        reward: Length scaling, and what happens to over-long responses.
        length_limit: Tokens at which responses were cut off; None: over-long ones are treated like
            others, as in evaluations.

    Returns:
        All samples, group by group, the same on all ranks.

    Raises:
        RewardError: On every rank, if a reward function failed on any of them, or finished none.
    """
    pairs = [(group, response) for group, several in enumerate(responses) for response in several]
    texts = [
        tokenizer.decode(response.last_turn, skip_special_tokens=True) for _, response in pairs
    ]
    tasks = [
        GradingTask(
            response=text,
            ground_truth=prompts[group].record.ground_truth,
            prompt=_question(prompts[group], response),
            data_source=prompts[group].record.data_source,
            extra=prompts[group].record.extra,
            sample=f"prompt {prompts[group].record.index}",
            response_tokens=response.num_generated_tokens,
        )
        for (group, response), text in zip(pairs, texts, strict=True)
        if response.score is None
    ]
    graded = iter(_report_lost(tasks, _grade_over_ranks(tasks, grader), reward))
    grades = [
        next(graded) if response.score is None else Grade(response.score, timed_out=False)
        for _, response in pairs
    ]
    mask_cut_off = reward.overlong == "mask" and length_limit is not None
    return [
        Sample(
            group=group,
            prompt=prompts[group],
            response=response,
            text=text,
            score=grade.score,
            reward=_shaped(grade, response, reward, length_limit),
            timed_out=grade.timed_out,
            killed=grade.killed,
            unanswered=grade.unanswered,
            parts=grade.parts,
            transcript=_transcript(response, tokenizer),
            excluded=mask_cut_off and response.finish_reason == "length",
        )
        for (group, response), text, grade in zip(pairs, texts, grades, strict=True)
    ]


def part_metrics(samples: Sequence[Sample]) -> dict[str, float]:
    """`reward/<function>/mean` of each of several functions, over the responses that it judges."""
    scores: dict[str, list[float]] = {}
    for sample in samples:
        for name, score in sample.parts.items():
            scores.setdefault(name, []).append(score)
    return {f"reward/{name}/mean": sum(scores[name]) / len(scores[name]) for name in sorted(scores)}


def _question(prompt: Prompt, response: Response) -> str:
    record, opening = prompt.record, response.opening
    return (record if opening is None else record.opened(opening.text)).messages[-1]["content"]


def _grade_over_ranks(
    tasks: Sequence[GradingTask], grader: ResponseGrader | CombinedGrader
) -> list[Grade]:
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


def _report_lost(
    tasks: Sequence[GradingTask], grades: list[Grade], reward: RewardConfig
) -> list[Grade]:
    """Says which responses score 0 because they could not be graded.

    Raises:
        RewardError: There are several, and all are lost: the function is, not a response.
    """
    causes = {
        f"timed out after {reward.timeout_s:g} s (reward.timeout_s)": [g.timed_out for g in grades],
        f"ran out of memory or were killed by the system (reward.memory_gb = {reward.memory_gb})": [
            g.killed for g in grades
        ],
        "got no score from the server, or nonsense in its place": [g.unanswered for g in grades],
    }
    for cause, lost in causes.items():
        if not any(lost):
            continue
        first = describe_sample(tasks[lost.index(True)])
        function = described(reward)
        if all(lost) and len(tasks) > 1:
            raise RewardError(
                f"{function}: all {len(tasks)} responses {cause}; make the function faster or "
                f"smaller, raise the limit, or look at the server. The first:\n{first}"
            )
        if dist.get_rank() == 0:
            logger.warning(
                "%s: %d of %d responses %s and score 0. The first:\n%s",
                function,
                sum(lost),
                len(tasks),
                cause,
                first,
            )
    return grades


def _transcript(response: Response, tokenizer: Any) -> str | None:
    return None if response.response_mask is None else tokenizer.decode(response.token_ids)


def _shaped(
    grade: Grade, response: Response, reward: RewardConfig, length_limit: int | None
) -> float:
    shaped = grade.reward
    if reward.length_scaling and grade.score > 0:
        shaped = length_scaled(
            shaped,
            response.num_generated_tokens,
            full_until=reward.length_full_until,
            floor_at=reward.length_floor_at,
            floor=reward.length_floor,
        )
    return shaped + penalty_of(response, reward, length_limit)


def penalty_of(response: Response, reward: RewardConfig, length_limit: int | None) -> float:
    """What an over-long response loses, at most 0. The limit counts tokens of all turns."""
    if reward.overlong != "penalize" or length_limit is None:
        return 0.0
    return overlong_penalty(
        len(response.token_ids),
        limit=length_limit,
        buffer=reward.overlong_buffer,
        penalty=reward.overlong_penalty,
    )
