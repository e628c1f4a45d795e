"""A recording answers the requests of the steps that it holds, and says how they are made up."""

from __future__ import annotations

from pathlib import Path

import pytest

from megatron_resrl.config.schema import Recipe, RolloutConfig
from megatron_resrl.data.prompts import Prompt, PromptRecord
from megatron_resrl.rollout.engine import (
    GenerationRequest,
    Response,
    SamplingParams,
    TrainingRound,
)
from megatron_resrl.rollout.engines.absent import AbsentEngine
from megatron_resrl.rollout.engines.replay import ReplayEngine
from megatron_resrl.rollout.group_table import Group
from megatron_resrl.rollout.recording import (
    Recorder,
    Recording,
    RecordingError,
    sampling_settings,
)

GROUPS = [
    Group(0, 0, (1, 2), [Response((5, 1), (-0.1, -1 / 3), "stop")], number=None),
    Group(0, 1, (3,), [Response((7,), (-2.5e-9,), "length")], number=1),
    Group(1, 0, (4, 4), [Response((8, 9), (0.0, -1.0), "stop")], number=0),
]
SETTINGS = sampling_settings(RolloutConfig())


def request(number: int, *prompts: tuple[int, ...]) -> GenerationRequest:
    questions = [
        Prompt(PromptRecord(index, [{"role": "user", "content": ""}], "", "test", {}), tokens)
        for index, tokens in enumerate(prompts)
    ]
    name = TrainingRound(2, number)
    return GenerationRequest.of_prompts(questions, SamplingParams(4, ()), (0, *name), name)


@pytest.fixture
def replay(tmp_path: Path, recipe: Recipe) -> ReplayEngine:
    """Of a recording of step 2; on one rank."""
    recording = Recording(tmp_path)
    recording.write(2, GROUPS, run=b"run", sampling=SETTINGS)
    return ReplayEngine(AbsentEngine(str(tmp_path)), recording)


def test_replay_engine_answers_and_selects_as_recorded(replay):
    assert replay.generate(request(0, (1, 2), (3,))) == [GROUPS[0].responses, GROUPS[1].responses]
    rounds = [[True, True]]  # Signals of this run's rewards: they do not count.
    assert replay.further_prompts(2, rounds) == 1
    assert replay.generate(request(1, (4, 4))) == [GROUPS[2].responses]
    rounds.append([False])
    assert replay.further_prompts(2, rounds) == 0
    assert replay.choose(2, rounds) == [(1, 0), (0, 1)]


def test_replay_engine_refuses_other_prompts(replay):
    with pytest.raises(RecordingError, match=r"step 2, round 0, prompt 1: .* tokens \(9,\)"):
        replay.begin(request(0, (1, 2), (9,)))
    with pytest.raises(RecordingError, match="holds 2 groups, this run has 1 prompts"):
        replay.begin(request(0, (1, 2)))


def test_recorder_continues_its_run_and_refuses_others(tmp_path, recipe):
    Recorder(str(tmp_path), run=b"run", sampling=SETTINGS).write(1, GROUPS)
    Recorder(str(tmp_path), run=b"run", sampling=SETTINGS).write(2, GROUPS)
    assert Recording(tmp_path).read(2) == GROUPS
    with pytest.raises(RecordingError, match="holds step 1 of a run with other settings"):
        Recorder(str(tmp_path), run=b"other", sampling=SETTINGS)
