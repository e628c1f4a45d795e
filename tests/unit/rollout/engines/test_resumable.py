"""What a stopped run had finished is not generated again, and what is generated is the same."""

from __future__ import annotations

from pathlib import Path

import pytest

from megatron_resrl.policy.policy import Policy
from megatron_resrl.rollout.engine import (
    GenerationRequest,
    Response,
    RolloutEngine,
    SamplingParams,
    TrainingRound,
    WrappingEngine,
)
from megatron_resrl.rollout.engines.absent import AbsentEngine
from megatron_resrl.rollout.engines.megatron import MegatronEngine
from megatron_resrl.rollout.engines.resumable import ResumableEngine
from megatron_resrl.rollout.log import RolloutLog

ROUND = TrainingRound(3, 1)
REQUEST = GenerationRequest(
    [(5, 6, 7), (8, 9), (10,)], SamplingParams(6, (), n=2), (0, 0, *ROUND), training_round=ROUND
)


class GroupByGroup(WrappingEngine):
    """Finishes groups one by one, and notes which prompts it is asked for."""

    def __init__(self, engine: RolloutEngine) -> None:
        super().__init__(engine)
        self.finishes_groups_together = False
        self.asked: list[tuple[int, ...]] = []

    def begin(self, request: GenerationRequest):
        self.asked += [tuple(prompt) for prompt in request.prompts]
        return self.engine.begin(request)


@pytest.fixture
def log(tmp_path: Path) -> RolloutLog:
    return RolloutLog(tmp_path / "rollouts", b"this run")


@pytest.fixture
def engine(policy: Policy) -> MegatronEngine:
    return MegatronEngine(policy, max_running_samples=4)


def files(log: RolloutLog) -> list[Path]:
    return sorted(log.directory.glob("step_000003/*"))


def tokens(groups: list[list[Response]]) -> list[list[tuple[int, ...]]]:
    """Without log-probabilities, whose last bit depends on what is decoded beside them."""
    return [[response.token_ids for response in group] for group in groups]


def test_resumable_engine_takes_a_whole_round_from_the_log(engine, log):
    expected = engine.generate(REQUEST)
    assert ResumableEngine(engine, log).generate(REQUEST) == expected
    assert len(files(log)) == 3
    nothing_generates = AbsentEngine("nowhere")
    assert ResumableEngine(nothing_generates, log).generate(REQUEST) == expected


def test_resumable_engine_generates_only_what_is_missing(engine, log):
    expected = ResumableEngine(engine, log).generate(REQUEST)
    damaged = files(log)[1]
    damaged.write_bytes(damaged.read_bytes()[:-1])
    noting = GroupByGroup(engine)
    again = ResumableEngine(noting, log).generate(REQUEST)
    assert noting.asked == [REQUEST.prompts[1]]
    assert tokens(again) == tokens(expected)
    assert len(files(log)) == 3


def test_resumable_engine_repeats_batches_that_finish_together(engine, log):
    expected = ResumableEngine(engine, log).generate(REQUEST)
    files(log)[0].unlink()
    assert ResumableEngine(engine, log).generate(REQUEST) == expected
    assert len(files(log)) == 3


def test_resumable_engine_does_not_use_groups_of_other_prompts(engine, log):
    ResumableEngine(engine, log).generate(REQUEST)
    others = GenerationRequest(
        [(11, 12), *REQUEST.prompts[1:]], REQUEST.sampling, REQUEST.seed, training_round=ROUND
    )
    expected = tokens(engine.generate(others))
    assert tokens(ResumableEngine(engine, log).generate(others)) == expected
    nothing_generates = AbsentEngine("nowhere")
    assert tokens(ResumableEngine(nothing_generates, log).generate(others)) == expected


def test_resumable_engine_logs_only_training_rounds(engine, log):
    request = GenerationRequest(REQUEST.prompts, REQUEST.sampling, REQUEST.seed)
    assert ResumableEngine(engine, log).generate(request) == engine.generate(request)
    assert not log.directory.exists()
