"""Several reward functions: their weights, their rows, and which decides what is correct."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from megatron_resrl.config.schema import RewardConfig
from megatron_resrl.errors import InputError
from megatron_resrl.rewards.combined import CombinedGrader
from megatron_resrl.rewards.grader import Grade, Grader, GradingTask
from megatron_resrl.rewards.grader_pools import GraderPools
from megatron_resrl.rewards.parts import Part, parts_of

SLOW = """
import time

def sleepy(response, ground_truth, **context):
    time.sleep(3600 if response == "7" else 0)
    return 1.0
"""


def task(response: str, source: str = "gsm8k", tokens: int = 4) -> GradingTask:
    return GradingTask(response, "7", "", source, {}, "prompt 0", tokens)


@pytest.mark.setting("reward.functions")
def test_functions_are_weighed_and_the_first_decides(tmp_path: Path) -> None:
    length = {"name": "length", "weight": -0.5, "options": {"longest": 8, "tolerance": 4}}
    functions = (
        {"name": "integer", "data_sources": ["gsm8k", "math*"], "weight": 2},
        length,
        {**length, "weight": 0.25, "options": {"shortest": 6, "tolerance": 8}},
    )
    reward = RewardConfig(functions=functions)
    tasks = [task("7"), task("8", "math500", 10), task("7", "other", 9)]
    with GraderPools([reward], tmp_path / "log") as pools:
        grades = pools.of(reward).grade(tasks)
    # integer 1, length 1 and 1 - 2/8; integer 0, 1 - 2/4 and 1; without integer: 1 - 1/4 and 1.
    assert [grade.score for grade in grades] == [1.0, 0.0, 0.75]
    assert [grade.reward for grade in grades] == [
        2 * 1.0 - 0.5 * 1.0 + 0.25 * 0.75,
        2 * 0.0 - 0.5 * 0.5 + 0.25 * 1.0,
        -0.5 * 0.75 + 0.25 * 1.0,
    ]
    assert [grade.parts for grade in grades] == [
        {"integer": 1.0, "length": 1.0, "length_2": 0.75},
        {"integer": 0.0, "length": 0.5, "length_2": 1.0},
        {"length": 0.75, "length_2": 1.0},
    ]


def test_what_one_function_cannot_grade_is_0_in_the_sum(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(SLOW)
    with (
        Grader("integer", workers=1, timeout_s=1.0) as first,
        Grader(f"{tmp_path / 'mine.py'}:sleepy", workers=1, timeout_s=3.0) as second,
    ):
        combined = CombinedGrader(
            [(Part("integer", label="integer"), first), (Part("x", 0.5, label="x"), second)]
        )
        grades = combined.grade([task("7"), task("8")])
    assert grades == [
        Grade(1.0, True, combined=1.0, parts={"integer": 1.0, "x": 0.0}),
        Grade(0.0, False, combined=0.5, parts={"integer": 0.0, "x": 1.0}),
    ]


def test_pools_are_shared_by_equal_functions(tmp_path: Path) -> None:
    shape = {"name": "length", "options": {"longest": 8}}
    rewards = [
        RewardConfig(functions=({"name": "integer"}, {**shape, "weight": 3})),
        RewardConfig(function="integer"),
        RewardConfig(functions=({**shape, "data_sources": "gsm8k"},)),
    ]
    pools = GraderPools(rewards, tmp_path / "log")
    first, second, third = (pools.parts_of(reward) for reward in rewards)
    assert first[0][1] is second[0][1]
    assert first[1][1] is third[0][1]
    assert first[0][1] is not first[1][1]


@pytest.mark.parametrize(
    ("sources", "judged"),
    [
        ((), ["", "math", "math500"]),
        (("math",), ["math"]),
        (("math*",), ["math", "math500"]),
        (("x", "math50[01]"), ["math500"]),
    ],
)
def test_part_judges_names_and_patterns(sources: tuple[str, ...], judged: list[str]) -> None:
    part = Part("math", data_sources=sources)
    assert [source for source in ("", "math", "math500") if part.judges(source)] == judged


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"functions": ("math",)}, "reward.functions[0] = 'math': an entry is no mapping"),
        ({"functions": ({},)}, "it has no name; write [{name: math"),
        ({"functions": ({"name": "math", "weights": 2},)}, "'weights', did you mean 'weight'?"),
        ({"functions": ({"name": "math", "weight": "2"},)}, "its weight is no number"),
        ({"functions": ({"name": "math", "weight": True},)}, "its weight is no number"),
        ({"functions": ({"name": "math", "weight": float("nan")},)}, "its weight is no number"),
        ({"functions": ({"name": "math", "options": [1]},)}, "its options are no mapping"),
        ({"functions": ({"name": "math", "data_sources": [1]},)}, "no list of names"),
        (
            {"functions": ({"name": "math"},), "function": "code"},
            "reward.function = 'code': reward.functions names 1 functions in its place",
        ),
        ({"functions": ({"name": "math"},), "options": {"a": 1}}, "reward.options = {'a': 1}: "),
    ],
)
def test_parts_of_refuses_malformed_entries(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError) as caught:
        parts_of(RewardConfig(**settings))
    assert said in str(caught.value)


def test_messages_name_the_entry_of_a_function(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("def score(response, ground_truth, **context):\n    1 / 0\n")
    mine = f"{tmp_path / 'mine.py'}:score"
    reward = RewardConfig(functions=({"name": "integer"}, {"name": mine}), workers=1)
    with GraderPools([reward], tmp_path / "log") as pools, pytest.raises(InputError) as caught:
        pools.of(reward).grade([task("7")])
    assert str(caught.value).startswith(f"reward.functions[1].name = '{mine}' raised Zero")
    wanting = {"name": "remote", "options": {"url": "http://h", "api_key_env": "NO_SUCH_KEY"}}
    with pytest.raises(InputError, match=r"^reward\.functions\[1\]\.options\.api_key_env = 'NO_S"):
        GraderPools([RewardConfig(functions=({"name": "integer"}, wanting))], tmp_path / "log")
    odd = {"name": "length", "options": {"shortist": 3}}
    with pytest.raises(InputError, match=r"^reward\.functions\[0\]\.options = .*shortest"):
        GraderPools([RewardConfig(functions=(odd,))], tmp_path / "log")


def test_grade_refuses_rows_that_no_function_judges() -> None:
    grader = CombinedGrader([(Part("integer", data_sources=("gsm8k", "m*")), None)])  # type: ignore[list-item]
    with pytest.raises(InputError, match=r"no function judges rows with the data_source 'gsm'"):
        grader.grade([task("7"), task("7", "gsm")])
