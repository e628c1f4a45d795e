"""Settings of the collection that contradict each other, or a recording, are refused."""

from __future__ import annotations

from dataclasses import replace

import pytest

from megatron_resrl.checks.collection import COLLECTION_CHECKS
from megatron_resrl.checks.facts import Facts
from megatron_resrl.config.problems import Problem
from megatron_resrl.config.schema import EvaluationConfig, Recipe, RewardConfig, RolloutConfig
from megatron_resrl.rollout.engine import Response
from megatron_resrl.rollout.group_table import Group
from megatron_resrl.rollout.recording import Recording, sampling_settings

GROUPS = [Group(0, 0, (1,), [Response((2,), (-1.0,), "stop")], number=0)]


def problems(recipe: Recipe) -> list[Problem]:
    return [problem for check in COLLECTION_CHECKS for problem in check(Facts(recipe, 1, {}))]


@pytest.fixture
def replaying(tmp_path) -> Recipe:
    """Replays two recorded steps."""
    rollout = RolloutConfig(replay=str(tmp_path))
    for step in (1, 2):
        recording = Recording(tmp_path)
        recording.write(step, GROUPS, run=b"", sampling=sampling_settings(rollout))
    return Recipe(steps=2, rollout=rollout)


def test_collection_defaults_pass():
    assert problems(Recipe()) == []


def test_check_overlong_needs_a_buffer_below_the_limit():
    rollout = RolloutConfig(max_response_length=100)
    reward = RewardConfig(overlong="penalize", overlong_buffer=100)
    (problem,) = problems(Recipe(rollout=rollout, reward=reward))
    assert problem.setting == "reward.overlong_buffer"
    assert "rollout.max_response_length, which is 100" in problem.problem
    assert problems(Recipe(rollout=rollout, reward=replace(reward, overlong_buffer=99))) == []
    assert problems(Recipe(rollout=rollout, reward=replace(reward, overlong="mask"))) == []


def test_dynamic_sampling_needs_a_refill():
    (problem,) = problems(Recipe(rollout=RolloutConfig(dynamic_sampling=True, max_refills=0)))
    assert problem.setting == "rollout.max_refills"


def test_recording_directory_must_not_be_a_file(tmp_path):
    (tmp_path / "file").write_text("")
    (problem,) = problems(Recipe(rollout=RolloutConfig(record=str(tmp_path / "file"))))
    assert problem.problem == "it is a file"


def test_replay_of_all_steps_passes_and_is_not_recorded(replaying):
    assert problems(replaying) == []
    twice = replace(replaying, rollout=replace(replaying.rollout, record="elsewhere"))
    assert [problem.setting for problem in problems(twice)] == ["rollout.record"]


def test_replay_of_steps_not_recorded_is_refused(replaying, tmp_path):
    (problem,) = problems(replace(replaying, steps=4))
    assert "step 3 is not recorded (2 of 4 are not)" in problem.problem
    assert problem.fix.startswith("set steps to 2")
    nowhere = Recipe(rollout=RolloutConfig(replay=str(tmp_path / "nowhere")))
    assert [problem.problem for problem in problems(nowhere)] == ["there are no recorded steps"]


def test_replay_keeps_the_sampling_of_its_recording(replaying):
    changed = replace(replaying.rollout, group_size=8, temperature=0.5)
    found = {problem.setting for problem in problems(replace(replaying, rollout=changed))}
    assert found == {"rollout.group_size", "rollout.temperature"}


def test_replay_evaluates_only_with_the_embedded_engine(replaying):
    evaluated = replace(replaying, evaluation=EvaluationConfig(files=("a.jsonl",)))
    assert problems(evaluated) == []
    served = replace(evaluated, rollout=replace(replaying.rollout, engine="vllm"))
    (problem,) = problems(served)
    assert problem.setting == "evaluation.files"
    assert "no engine is started" in problem.problem
