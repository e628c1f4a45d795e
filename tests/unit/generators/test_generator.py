"""Rows of generators, held against the library that makes them."""

from __future__ import annotations

from typing import Any

import pytest
from task_library import needs_reasoning_gym

from megatron_resrl.errors import InputError
from megatron_resrl.generators.exact_json import from_json
from megatron_resrl.generators.generator import Generator, new_generator
from megatron_resrl.generators.make_rows import rows_of
from megatron_resrl.generators.reasoning_gym_tasks import TaskError

UNSETTLED = (
    *("isomorphic_strings", "knight_swap", "polynomial_multiplication", "ransom_note"),
    *("word_ladder", "list_functions"),
)
"""Tasks whose questions depend on the hash seed of the process, and one that draws from the
interpreter's own random numbers."""


def generator(task: str, size: int = 3, seed: int = 7, **options: Any) -> Generator:
    return new_generator(f"reasoning_gym:{task}", options, size, seed)


@needs_reasoning_gym
@pytest.mark.parametrize(
    ("task", "options"),
    [
        ("chain_sum", {"min_terms": 2, "max_terms": 3}),
        ("leg_counting", {}),
        ("rotate_matrix", {"max_n": 4}),
        ("graph_color", {}),
    ],
)
def test_rows_are_those_of_the_library(task: str, options: dict[str, Any]) -> None:
    from reasoning_gym import create_dataset

    rows = list(rows_of(f"reasoning_gym:{task}", generator(task, **options).options, 3, 7, 3))
    expected = list(create_dataset(task, seed=7, size=3, **options))
    assert [row["question"] for row in rows] == [each["question"] for each in expected]
    assert [row["answer"] for row in rows] == [each["answer"] for each in expected]
    assert [from_json(row["metadata"]) for row in rows] == [each["metadata"] for each in expected]
    assert [from_json(row["task_options"]) for row in rows] == [options] * 3
    assert {row["data_source"] for row in rows} == {f"reasoning_gym:{task}"}


@needs_reasoning_gym
def test_composite_rows_are_of_their_own_tasks() -> None:
    from reasoning_gym.composite import DatasetSpec
    from reasoning_gym.factory import create_dataset

    parts = [{"name": "chain_sum", "config": {"max_terms": 4}}, {"name": "gcd", "weight": 3}]
    own = generator("composite", 40, datasets=parts)
    rows = list(rows_of(own.address, own.options, 40, 7, 40))
    specs = [DatasetSpec("chain_sum", 1.0, {"max_terms": 4}), DatasetSpec("gcd", 3.0, {})]
    expected = create_dataset("composite", seed=7, size=40, datasets=specs)
    assert [row["question"] for row in rows] == [each["question"] for each in expected]
    sources = [row["data_source"] for row in rows]
    assert 20 < sources.count("reasoning_gym:gcd") < 40
    of_sums = [row for row in rows if row["data_source"] == "reasoning_gym:chain_sum"]
    assert {row["task_options"] for row in of_sums} == {'{"max_terms": 4}'}


@pytest.mark.slow
@needs_reasoning_gym
def test_rows_are_the_same_whatever_the_hash_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    parts = [{"name": task} for task in UNSETTLED]
    own = generator("composite", 30, datasets=parts)
    found = []
    for seed in ("1", "2"):
        monkeypatch.setenv("PYTHONHASHSEED", seed)
        found.append(list(own.rows()))
    assert found[0] == found[1]
    assert len({row["data_source"] for _, row in found[0]}) == len(UNSETTLED)
    assert [where for where, _ in found[0][:2]] == [f"{own.address}, row {n}" for n in (0, 1)]
    assert list(own.rows(limit=4)) == found[0][:4]


@needs_reasoning_gym
def test_rows_of_a_task_that_raises_are_an_input_error() -> None:
    # The library takes these options, and fails when it makes a question.
    broken = generator("chain_sum", min_digits=1, max_digits=1, min_terms=2, max_terms=2.5)
    broken.check()
    with pytest.raises(InputError, match=r"chain_sum: it makes no questions, .*Error"):
        list(broken.rows())


@needs_reasoning_gym
@pytest.mark.parametrize(
    ("address", "options", "said"),
    [
        ("reasoning_gym:leg_countin", {}, r"no task 'leg_countin'; did you mean leg_counting\?"),
        ("reasoning_gym:qqq", {}, "no task 'qqq'; it has ab, acre, .*, zebra_puzzles"),
        ("reasoning-gym:gcd", {}, r"did you mean reasoning_gym:gcd\?"),
        ("reasoning_gym", {}, "names no task; give e.g. reasoning_gym:leg_counting"),
        ("reasoning_gym:gcd", {"min_number": 3}, r"'min_number'; did you mean min_numbers\?"),
        ("reasoning_gym:gcd", {"seed": 3}, "'seed' is no option of a task"),
        ("reasoning_gym:gcd", {"min_numbers": 9}, "refuses them .*its options are min_numbers"),
        ("reasoning_gym:gcd", {"min_numbers": "a"}, "refuses them .TypeError"),
        ("reasoning_gym:composite", {}, "composite has no tasks; give datasets:"),
        ("reasoning_gym:composite", {"datasets": [{"name": "gdc"}]}, "did you mean gcd"),
        ("reasoning_gym:composite", {"datasets": [{"task": "gcd"}]}, "is no task of composite"),
        (
            "reasoning_gym:composite",
            {"datasets": [{"name": "gcd", "weight": 0}]},
            "the weight of gcd is 0; give a number above 0",
        ),
        (
            "reasoning_gym:composite",
            {"datasets": [{"name": "gcd", "config": {"max_value": 9, "max_numbrs": 3}}]},
            r"'max_numbrs'; did you mean max_numbers\?",
        ),
    ],
)
def test_check_refuses_unknown_tasks_and_options(
    address: str, options: dict[str, Any], said: str
) -> None:
    with pytest.raises(TaskError, match=said):
        new_generator(address, options, 3, 7).check()


def test_shares_questions_where_sums_of_seed_and_place_meet() -> None:
    own = generator("gcd", size=10, seed=20)
    assert own.shares_questions(generator("gcd", size=1, seed=29))
    assert own.shares_questions(generator("gcd", size=100, seed=0))
    assert not own.shares_questions(generator("gcd", size=1, seed=30))
    assert not own.shares_questions(generator("gcd", size=20, seed=0))
    assert not own.shares_questions(generator("lcm", size=100, seed=0))
    assert not own.shares_questions(generator("gcd", size=100, seed=0, max_value=9))
