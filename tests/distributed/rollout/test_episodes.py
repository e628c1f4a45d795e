"""Episodes are the same in every layout, with real decoding and an environment on every rank."""

from __future__ import annotations

import json
from itertools import groupby
from pathlib import Path

import pytest
import tiny_families as tiny
from ranks import run_ranks

ENVIRONMENTS = '''\
from megatron_resrl.rollout.environments.environment import Observation


class Counting:
    """Ends after one turn more than the prompt's number; says something long in prompt 3."""

    role = "user"

    def reset(self, record, seed):
        self.index, self.turns = record.index, 0

    def step(self, action):
        self.turns += 1
        score = self.turns / 10 if self.index % 2 else None
        text = "w7 w8 w9" if self.index != 3 else "w7 " * 24
        return Observation(text, self.turns > self.index, score)


class Broken(Counting):
    def step(self, action):
        if self.index == 2 and self.turns == 1:
            raise LookupError("no such square")
        return super().step(action)
'''
LIMIT, MAX_TURNS, STOP = 24, 4, range(40)
OBSERVED = [7, 8, 9]


@pytest.fixture(scope="module")
def played(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict]:
    """What the ranks found, by layout."""
    folder = tmp_path_factory.mktemp("episodes")
    model = tiny.write_families(folder, ["qwen3"])["qwen3"]
    (folder / "games.py").write_text(ENVIRONMENTS)
    found = {}
    for ranks in (1, 2):
        script = Path(__file__).with_name("ranks_episodes.py")
        for line in run_ranks(script, ranks, model, folder / "games.py").splitlines():
            if line.startswith('{"layout"'):
                one = json.loads(line)
                found[one["layout"]] = one["found"]
    assert len(found) == 5
    return found


def test_episodes_agree_over_layouts(played: dict[str, dict]) -> None:
    for layout, found in played.items():
        assert found["responses"] == played["one"]["responses"], layout


def test_episodes_of_a_part_equal_those_of_the_whole(played: dict[str, dict]) -> None:
    for layout, found in played.items():
        assert found["alone"] == found["responses"][2:3], layout


def test_episodes_have_the_trainers_log_probs(played: dict[str, dict]) -> None:
    # fp32 in another order.
    assert max(found["difference"] for found in played.values()) <= 2e-5


def test_episodes_alternate_and_end_with_the_policy(
    played: dict[str, dict],
) -> None:
    several_turns = 0
    for prompt, group in enumerate(played["one"]["responses"]):
        for tokens, mask, reason, score in group:
            assert len(tokens) <= LIMIT
            runs = [
                (drawn, [token for _, token in run])
                for drawn, run in groupby(
                    zip(mask or [True] * len(tokens), tokens, strict=True), key=lambda pair: pair[0]
                )
            ]
            turns = [run for drawn, run in runs if drawn]
            assert runs[0][0]
            assert runs[-1][0]
            assert all(run == OBSERVED for drawn, run in runs if not drawn)
            assert all(turn[-1] in STOP for turn in turns[:-1])
            assert len(turns) <= min(prompt + 1, MAX_TURNS)
            if reason == "stop":
                assert len(turns) == prompt + 1
                assert tokens[-1] in STOP
            assert score == (len(turns) / 10 if prompt % 2 else None)
            several_turns += len(turns) > 1
    assert several_turns >= 3


def test_episode_ends_with_an_observation_without_room(played: dict[str, dict]) -> None:
    for tokens, mask, reason, _ in played["one"]["responses"][3]:
        assert not mask
        assert reason == "length"
        assert len(tokens) <= LIMIT


def test_episodes_report_each_group_once_as_it_finishes(played: dict[str, dict]) -> None:
    for found in played.values():
        assert sorted(found["reported"]) == [0, 1, 2, 3]
        assert found["reported"].index(0) < found["reported"].index(2)


def test_episodes_name_a_failing_environment_on_all_ranks(
    played: dict[str, dict],
) -> None:
    message = (
        "rollout.environment = 'Broken' raised LookupError: no such square "
        "(step, turn 1 of sample {} of prompt 2 of test)"
    )
    for layout, found in played.items():
        assert len(set(found["failures"])) == 1, layout
        assert found["failures"][0] in [message.format(sample) for sample in range(3)], layout
