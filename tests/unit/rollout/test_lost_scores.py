"""Ground truths before the first step, and responses that cannot be graded."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from questions import load_prompts
from tiny_recipe import write_model

from megatron_resrl.config.schema import ModelConfig, RewardConfig
from megatron_resrl.data.records import Prompt, PromptRecord
from megatron_resrl.data.tokenizer import load_tokenizer
from megatron_resrl.diagnostics.step_metrics import batch_metrics
from megatron_resrl.errors import InputError
from megatron_resrl.rewards.grader import Grader, RewardError
from megatron_resrl.rewards.parts import Part
from megatron_resrl.rollout.batch import RolloutBatch
from megatron_resrl.rollout.collect import Sample, grade_responses
from megatron_resrl.rollout.engine import Response
from megatron_resrl.rollout.ground_truths import require_ground_truths

TIMEOUT_S = 5.0
"""Long enough for a grader that is killed to be noticed on a busy machine."""
PROMPT = Prompt(PromptRecord(0, [{"role": "user", "content": "3 4"}], "7", "test", {}), (3, 4))
REWARD = """
import os, signal, time

def score(response, ground_truth, **context):
    if "9" in response:
        time.sleep(3600)
    if "8" in response:
        os.kill(os.getpid(), signal.SIGKILL)
    return 1.0
"""


@pytest.fixture(scope="module", autouse=True)
def one_rank() -> Iterator[None]:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def grading(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Grader, Any]]:
    directory: Path = tmp_path_factory.mktemp("grading")
    (directory / "reward.py").write_text(REWARD)
    model = write_model(directory / "model")
    with Grader(f"{directory / 'reward.py'}:score", workers=2, timeout_s=TIMEOUT_S) as grader:
        yield grader, load_tokenizer(ModelConfig(path=str(model)))


def graded(grading: tuple[Grader, Any], *tokens: int) -> list[Sample]:
    responses = [Response((token,), (-1.0,), "stop") for token in tokens]
    reward = RewardConfig(function="mine.py:score", timeout_s=TIMEOUT_S, memory_gb=2.0)
    return grade_responses([PROMPT], [responses], *grading, reward)


@pytest.mark.parametrize(
    ("token", "field", "cause"),
    [
        (9, "timed_out", "1 of 3 responses timed out after 5 s (reward.timeout_s)"),
        (8, "killed", "1 of 3 responses ran out of memory or were killed by the system"),
    ],
)
def test_lost_score_is_counted_and_logged_with_its_sample(
    grading, caplog: pytest.LogCaptureFixture, token: int, field: str, cause: str
) -> None:
    samples = graded(grading, 7, token, 7)
    assert [sample.score for sample in samples] == [1.0, 0.0, 1.0]
    assert [getattr(sample, field) for sample in samples] == [False, True, False]
    (message,) = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    assert cause in message
    assert f"response: '{token}'" in message
    assert "prompt: '3 4'" in message


@pytest.mark.parametrize(
    ("token", "setting"), [(9, "reward.timeout_s"), (8, "reward.memory_gb = 2")]
)
def test_lost_scores_of_all_responses_end_the_run(grading, token: int, setting: str) -> None:
    with pytest.raises(RewardError, match=r"all 2 responses (timed|ran) out") as error:
        graded(grading, token, token)
    assert setting in str(error.value)
    assert f"response: '{token}'" in str(error.value)
    assert graded(grading, 7)[0].score == 1.0


def test_lost_scores_are_metrics(grading) -> None:
    batch = RolloutBatch.from_samples(graded(grading, 7, 9, 8, 7))
    metrics = batch_metrics(batch, torch.zeros(4))
    assert (metrics["reward/timeouts"], metrics["reward/killed"]) == (1.0, 1.0)


def prompts_of(path: Path, answers: list[Any]) -> list[Prompt]:
    rows = [json.dumps({"prompt": "3", "answer": answer}) for answer in answers]
    path.write_text("\n".join(rows))
    return [Prompt(record, (3,)) for record in load_prompts(path)]


def test_ground_truths_that_cannot_be_used_end_the_run_early(tmp_path: Path) -> None:
    good = prompts_of(tmp_path / "good.jsonl", ["4", 1e-05, ["4", "4.0"], r"\frac{1}{2}"])
    bad = prompts_of(tmp_path / "bad.jsonl", ["4", True, "4", {"target": "3"}, True])
    with Grader("math", workers=1, timeout_s=30.0) as grader:
        require_ground_truths(good, [(Part("math"), grader)])
        with pytest.raises(InputError) as error:
            require_ground_truths(good + bad, [(Part("math"), grader)])
        assert str(error.value) == (
            "reward.function = 'math' cannot use the answers of 3 of 9 questions; the first, "
            f"{tmp_path / 'bad.jsonl'}, line 2: the ground truth is True: give a number or text"
        )
        require_ground_truths(bad, [(Part("math"), grader)], environment="calculator")


def test_rows_without_a_reward_s_columns_end_the_run_early(tmp_path: Path) -> None:
    prompts = prompts_of(tmp_path / "plain.jsonl", ["4", "5"])
    with (
        Grader("math", workers=1, timeout_s=30.0) as grader,
        pytest.raises(InputError) as error,
    ):
        # The rows are refused before any grader is asked.
        require_ground_truths(prompts, [(Part("reasoning_gym"), grader)])
    assert str(error.value).startswith(
        "reward.function = 'reasoning_gym' cannot use 2 of 2 rows; the first, "
        f"{tmp_path / 'plain.jsonl'}, line 1: the column metadata is None"
    )
