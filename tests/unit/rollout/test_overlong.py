"""What grading makes of responses that come close to the length limit or were cut off there."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist
from tiny_recipe import write_model

from megatron_resrl.config.schema import ModelConfig, RewardConfig
from megatron_resrl.data.prompts import Prompt, PromptRecord
from megatron_resrl.data.tokenizer import load_tokenizer
from megatron_resrl.rewards.grader import Grader
from megatron_resrl.rollout.collect import Sample, grade_responses
from megatron_resrl.rollout.engine import Response

LIMIT = 8
PROMPT = Prompt(PromptRecord(0, [{"role": "user", "content": "3 4"}], "7", "test", {}), (3, 4))
RESPONSES = [
    Response((7,) * 2, (-1.0,) * 2, "stop"),
    Response((7,) * 6, (-1.0,) * 6, "stop"),
    Response((7,) * 8, (-1.0,) * 8, "stop"),
    Response((9,) * 8, (-1.0,) * 8, "length"),
]
"""Ends before the buffer of 4 tokens, in it, at the limit; wrong, and cut off there."""


@pytest.fixture(scope="module", autouse=True)
def one_rank() -> Iterator[None]:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def grading(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Grader, Any]]:
    """Graders of a reward of 1 for the token 7, and a tokenizer."""
    directory: Path = tmp_path_factory.mktemp("grading")
    reward = "def seven(response, ground_truth, **context):\n    return float('7' in response)\n"
    (directory / "reward.py").write_text(reward)
    model = write_model(directory / "model")
    with Grader(f"{directory / 'reward.py'}:seven", workers=1, timeout_s=30.0) as grader:
        yield grader, load_tokenizer(ModelConfig(path=str(model)))


def graded(grading: tuple[Grader, Any], limit: int | None = LIMIT, **settings: Any) -> list[Sample]:
    reward = RewardConfig(**settings)
    return grade_responses([PROMPT], [RESPONSES], *grading, reward, length_limit=limit)


def test_overlong_truncate_grades_responses_as_they_are(grading):
    samples = graded(grading)
    assert [sample.reward for sample in samples] == [1, 1, 1, 0]
    assert not any(sample.excluded for sample in samples)


def test_transcripts_are_of_responses_of_an_environment(grading):
    answered = Response((7, 9, 7), (-1.0,) * 3, "stop", response_mask=(True, False, True))
    alone, several = grade_responses(
        [PROMPT], [[RESPONSES[0], answered]], *grading, RewardConfig(), length_limit=LIMIT
    )
    assert alone.transcript is None
    assert several.transcript == grading[1].decode([7, 9, 7])


def test_score_of_an_environment_replaces_the_graders(grading):
    scored = Response((9, 7), (-1.0,) * 2, "stop", response_mask=(True, False), score=0.25)
    samples = grade_responses(
        [PROMPT], [[scored, RESPONSES[0]]], *grading, RewardConfig(), length_limit=LIMIT
    )
    assert [sample.score for sample in samples] == [0.25, 1]
    assert not any(sample.timed_out for sample in samples)


@pytest.mark.setting("reward.overlong")
def test_overlong_mask_keeps_the_rewards_of_masked_responses(grading):
    samples = graded(grading, overlong="mask")
    assert [sample.excluded for sample in samples] == [False, False, False, True]
    assert [sample.reward for sample in samples] == [1, 1, 1, 0]


@pytest.mark.setting("reward.overlong_buffer", "reward.overlong_penalty")
def test_overlong_penalty_lowers_rewards_and_leaves_scores(grading):
    samples = graded(grading, overlong="penalize", overlong_buffer=4, overlong_penalty=0.5)
    assert [sample.reward for sample in samples] == [1, 0.75, 0.5, -0.5]
    assert [sample.score for sample in samples] == [1, 1, 1, 0]


@pytest.mark.setting(
    "reward.length_scaling",
    "reward.length_full_until",
    "reward.length_floor_at",
    "reward.length_floor",
)
def test_overlong_penalty_adds_to_length_scaling(grading):
    scaling = {"length_scaling": True, "length_full_until": 2, "length_floor_at": 6}
    penalty = {"overlong": "penalize", "overlong_buffer": 4, "overlong_penalty": 0.5}
    samples = graded(grading, length_floor=0.5, **scaling, **penalty)
    assert [sample.reward for sample in samples] == [1, 0.25, 0, -0.5]


@pytest.mark.parametrize("overlong", ["mask", "penalize"])
def test_overlong_responses_of_evaluations_are_like_others(grading, overlong):
    samples = graded(grading, limit=None, overlong=overlong, overlong_buffer=4)
    assert [sample.reward for sample in samples] == [1, 1, 1, 0]
    assert not any(sample.excluded for sample in samples)
