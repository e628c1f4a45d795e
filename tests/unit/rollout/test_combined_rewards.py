"""What samples and metrics are made of when several functions grade."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch.distributed as dist
from tiny_recipe import write_model

from megatron_resrl.algorithms import get_algorithm
from megatron_resrl.config.schema import ModelConfig, RewardConfig
from megatron_resrl.data.records import Prompt, PromptRecord
from megatron_resrl.data.tokenizer import load_tokenizer
from megatron_resrl.errors import InputError
from megatron_resrl.rewards.grader_pools import GraderPools
from megatron_resrl.rollout.batch import RolloutBatch
from megatron_resrl.rollout.collect import grade_responses, part_metrics
from megatron_resrl.rollout.engine import Response
from megatron_resrl.rollout.ground_truths import require_ground_truths


@pytest.fixture(scope="module", autouse=True)
def one_rank() -> Iterator[None]:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def prompt(answer: str, source: str) -> Prompt:
    return Prompt(PromptRecord(0, [{"role": "user", "content": "3 4"}], answer, source, {}), (3,))


SHORT = {"name": "length", "weight": 0.5, "options": {"longest": 1, "tolerance": 2}}
REWARD = RewardConfig(
    functions=({"name": "integer", "data_sources": ["sums"]}, SHORT),
    length_scaling=True,
    length_full_until=1,
    length_floor_at=2,
    length_floor=0.5,
)


def test_samples_have_the_sum_as_reward_and_the_first_score(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(ModelConfig(path=str(write_model(tmp_path / "model"))))
    responses = [Response((7,), (-1.0,), "stop"), Response((8,) * 2, (-1.0,) * 2, "stop")]
    responses += [Response((7,) * 2, (-1.0,) * 2, "stop"), Response((8,), (-1.0,), "stop")]
    prompts = [prompt("7", "sums"), prompt("7", "poems")]
    with GraderPools([REWARD], tmp_path / "log") as pools:
        samples = grade_responses(
            prompts, [responses, responses[:2]], pools.of(REWARD), tokenizer, REWARD
        )
    right = [1.0, 0.0, 1.0, 0.0]  # 7; 8 8; 7 7; 8.
    scores = [*right, 1.0, 0.5]
    assert [sample.score for sample in samples] == scores
    lengths = [1.0, 0.5, 0.5, 1.0, 1.0, 0.5]
    sums = [one + 0.5 * other for one, other in zip(right, lengths[:4], strict=True)]
    sums += [0.5 * 1.0, 0.5 * 0.5]
    # Correct responses of two tokens keep half of their sum.
    halved = [
        total * (0.5 if score > 0 and sample.response.num_generated_tokens == 2 else 1.0)
        for total, score, sample in zip(sums, scores, samples, strict=True)
    ]
    assert [sample.reward for sample in samples] == halved
    assert part_metrics(samples) == {
        "reward/integer/mean": sum(right) / 4,
        "reward/length/mean": sum(lengths) / 6,
    }
    batch = RolloutBatch.from_samples(samples)
    positive = get_algorithm("resrl").positive(batch.scores, batch.rewards)
    assert positive.tolist() == [score > 0 for score in scores]


def test_ground_truths_are_read_by_the_functions_of_a_row(tmp_path: Path) -> None:
    with GraderPools([REWARD], tmp_path / "log") as pools:
        graders = pools.parts_of(REWARD)
        require_ground_truths([prompt("7", "sums"), prompt("a rose", "poems")], graders)
        with pytest.raises(
            InputError,
            match=r"^reward\.functions\[0\]\.name = .*1 of 2 questions.*'a rose', not an integer",
        ):
            require_ground_truths([prompt("7", "sums"), prompt("a rose", "sums")], graders)
        with pytest.raises(InputError, match=r"no function judges rows.*'poems'"):
            require_ground_truths([prompt("7", "poems")], graders[:1])
