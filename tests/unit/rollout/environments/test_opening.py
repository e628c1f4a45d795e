"""Environments that begin: their first words are part of the prompt, the same for a group."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from megatron_resrl.config.schema import Recipe, RolloutConfig
from megatron_resrl.data.records import Prompt, PromptRecord
from megatron_resrl.data.tokenizer import load_tokenizer
from megatron_resrl.policy.policy import Policy
from megatron_resrl.rollout.collect import Sample
from megatron_resrl.rollout.engine import GenerationRequest, Opening, Response, SamplingParams
from megatron_resrl.rollout.engines.factory import make_engine
from megatron_resrl.rollout.environments.running import EnvironmentFailed

GAMES = """\
from megatron_resrl.rollout.environments.environment import Observation

MADE = []

class Opening:
    role = "user"

    def __init__(self):
        MADE.append(self)
        self.number, self.closed = len(MADE), 0

    def reset(self, record, seed):
        self.seed = seed
        return "7 8 </s>" + " 9" * record.index

    def step(self, action):
        return Observation("3", done=True, score=1.0)

    def close(self):
        self.closed += 1

class Different(Opening):
    def reset(self, record, seed):
        return str(self.number)

class Nothing(Opening):
    def reset(self, record, seed):
        return ""

class Number(Opening):
    def reset(self, record, seed):
        return 7
"""
SAMPLING = SamplingParams(4, (1,), n=3)
Play = Callable[[str], list[list[Response]]]


@pytest.fixture
def games(tmp_path: Path) -> Path:
    file = tmp_path / "opening_games.py"
    file.write_text(GAMES)
    return file


@pytest.fixture
def play(games: Path, recipe: Recipe, policy: Policy) -> Play:
    """Plays three samples of two prompts in an environment of `GAMES`."""
    prompts = [
        Prompt(PromptRecord(index, [{"role": "user", "content": "5 6"}], "", "test", {}), (5, 6))
        for index in range(2)
    ]

    def played(name: str, *, longest: int = 8) -> list[list[Response]]:
        settings = replace(
            recipe,
            rollout=RolloutConfig(environment=f"{games}:{name}"),
            data=replace(recipe.data, max_prompt_length=longest),
        )
        engine = make_engine(settings, policy, load_tokenizer(recipe.model), trainable=False)
        return engine.generate(GenerationRequest.of_prompts(prompts, SAMPLING, (4, 2)))

    return played


def made() -> list[Any]:
    """The environments of the last fixture's file; the first was made to try it out."""
    import sys

    return sys.modules["megatron_resrl_environment_opening_games"].MADE


def test_episodes_begin_with_the_environments_opening(play: Play) -> None:
    first, second = play("Opening")
    # The template writes messages behind each other; special tokens of the opening are taken out.
    assert {each.opening for each in first} == {Opening("7 8 ", (5, 6, 7, 8))}
    assert {each.opening for each in second} == {Opening("7 8  9", (5, 6, 7, 8, 9))}


def test_episodes_of_a_group_have_one_seed(play: Play) -> None:
    play("Opening")
    played = [each for each in made() if hasattr(each, "seed")]
    assert [each.seed for each in played] == [(4, 2, 0)] * 3 + [(4, 2, 1)] * 3


def test_episodes_close_each_environment_once(play: Play) -> None:
    play("Opening")
    assert [each.closed for each in made() if hasattr(each, "seed")] == [1] * 6


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("Different", r"began with '\d', and with '\d' for another sample of the group"),
        ("Nothing", "reset returned '', which is neither a text nor None"),
        ("Number", "reset returned 7, which is neither a text nor None"),
    ],
)
def test_episodes_refuse_an_opening(play: Play, name: str, said: str) -> None:
    with pytest.raises(EnvironmentFailed, match=said):
        play(name)


def test_episodes_refuse_an_opening_that_is_too_long(play: Play) -> None:
    said = r"data\.max_prompt_length = 4: with the opening .* the prompt has 5 tokens; raise it"
    with pytest.raises(EnvironmentFailed, match=said):
        play("Opening", longest=4)


@pytest.mark.parametrize(
    ("messages", "opened"),
    [
        ([("user", "go")], [("user", "go\n\nhere")]),
        ([("system", "s"), ("user", "")], [("system", "s"), ("user", "here")]),
        ([("system", "s")], [("system", "s"), ("user", "here")]),
    ],
)
def test_prompt_record_opened_ends_with_the_opening(messages: list, opened: list) -> None:
    def of(pairs: list) -> PromptRecord:
        made = [{"role": role, "content": content} for role, content in pairs]
        return PromptRecord(0, made, "", "test", {})

    assert of(messages).opened("here") == of(opened)


def test_sample_is_trained_on_with_the_opening() -> None:
    record = PromptRecord(0, [{"role": "user", "content": "go"}], "", "test", {})
    response = Response((5, 1), (-1.0, -1.0), "stop", opening=Opening("here", (3, 4, 7)))
    sample = Sample(0, Prompt(record, (3, 4)), response, "5", 1.0, 1.0, timed_out=False)
    assert sample.tokens.prompt == (3, 4, 7)
    assert sample.question == "go\n\nhere"
    plain = replace(sample, response=replace(response, opening=None))
    assert plain.tokens.prompt == (3, 4)
    assert plain.question == "go"
