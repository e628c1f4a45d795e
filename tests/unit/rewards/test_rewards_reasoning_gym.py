"""The verifiers of reasoning-gym's tasks, asked with rows as a run has them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from task_library import needs_reasoning_gym

from megatron_resrl.config.schema import RewardConfig
from megatron_resrl.generators.exact_json import from_json
from megatron_resrl.generators.make_rows import rows_of
from megatron_resrl.rewards.credit import Credit
from megatron_resrl.rewards.grader import Grader, GradingTask
from megatron_resrl.rewards.grader_pools import GraderPools
from megatron_resrl.rewards.reasoning_gym import reasoning_gym_reward

SOLVED = (
    *("ab", "base_conversion", "binary_matrix", "chain_sum", "color_cube_rotation", "countdown"),
    *("decimal_arithmetic", "gcd", "kakurasu", "knights_knaves", "leg_counting", "letter_counting"),
    *("mini_sudoku", "palindrome_partitioning", "polynomial_equations", "prime_factorization"),
    *("rearc", "rotate_matrix", "shortest_path", "time_intervals", "tower_of_hanoi"),
)
"""Tasks that are quick to make, of every kind of metadata and verifier."""


def row(task: str, options: str = "{}", seed: int = 3) -> dict[str, Any]:
    return next(iter(rows_of(f"reasoning_gym:{task}", options, 1, seed, 1)))


def graded(response: str, row: dict[str, Any], **options: Any) -> Credit:
    extra = {key: row[key] for key in ("metadata", "task_options")}
    return reasoning_gym_reward(response, row["answer"], extra=extra, **options)


@needs_reasoning_gym
@pytest.mark.parametrize("task", SOLVED)
def test_own_answer_of_a_task_is_right_and_another_is_not(task: str) -> None:
    own = row(task)
    right = graded(f"<think>Hm.</think>\n<answer>{own['answer']}</answer>", own)
    assert right == Credit(1.0, 1.0)
    wrong = graded("<answer>zzz</answer>", own)
    assert wrong.score == 0.0
    assert wrong.reward < 1.0


@needs_reasoning_gym
def test_task_without_an_answer_of_its_own_is_verified() -> None:
    own = row("graph_color")
    assert own["answer"] is None
    colours = from_json(own["metadata"])["possible_answer"]
    assert graded(f"<answer>{json.dumps(colours)}</answer>", own) == Credit(1.0, 1.0)
    same = json.dumps(dict.fromkeys(colours, 1))
    assert graded(f"<answer>{same}</answer>", own) == Credit(0.0, 0.01)


@needs_reasoning_gym
@pytest.mark.parametrize(
    ("response", "options", "right"),
    [
        ("<answer>1</answer> or <answer> {} </answer>", {}, True),
        ("<ANSWER>\n{}\n</ANSWER>", {}, True),
        (r"so \boxed{{{}}}", {}, True),
        (r"<answer>-1</answer> \boxed{{{}}}", {}, False),
        (r"<answer>-1</answer> \boxed{{{}}}", {"answer": "boxed"}, True),
        (r"\boxed{{{}}}", {"answer": "tags"}, False),
        (" {}\n", {"answer": "whole"}, True),
        ("{}", {}, False),
        ("<answer>{}", {}, False),
        ("<answer></answer>", {}, False),
    ],
)
def test_answer_stands_where_the_option_says(
    response: str, options: dict[str, str], right: bool
) -> None:
    own = row("gcd")
    assert graded(response.format(own["answer"]), own, **options).score == float(right)


@needs_reasoning_gym
def test_threshold_decides_what_of_a_partial_credit_is_correct() -> None:
    own = row("leg_counting")
    # The library's partial credit of a longer text with the answer in it: the share of its letters.
    text = f"{own['answer']} legs"
    share = len(own["answer"]) / len(text)
    response = f"<answer>{text}</answer>"
    assert graded(response, own) == Credit(0.0, share)
    assert graded(response, own, threshold=share) == Credit(share, share)
    assert graded(response, own, threshold=share + 0.01) == Credit(0.0, share)


@needs_reasoning_gym
@pytest.mark.parametrize(("places", "score"), [(2, 1.0), (3, 0.0)])
def test_verifier_sees_the_options_of_its_task(places: int, score: float) -> None:
    # It takes what is off by one unit of the last decimal place that the options allow.
    options = f'{{"min_num_decimal_places": 2, "max_num_decimal_places": {places}, "precision": 9}}'
    own = row("decimal_arithmetic") | {"task_options": options, "answer": "1.230"}
    assert graded("<answer>1.235</answer>", own).score == score


@needs_reasoning_gym
def test_verifier_that_raises_is_0_and_reported(capsys: pytest.CaptureFixture[str]) -> None:
    assert graded("<answer>2 x three</answer>", row("prime_factorization")) == Credit(0.0, 0.0)
    assert "the verifier of prime_factorization raises ValueError" in capsys.readouterr().err


@pytest.mark.parametrize("metadata", [None, "{", "[]", {"source_dataset": 3}, {}])
def test_row_of_something_else_is_refused(metadata: Any) -> None:
    with pytest.raises(ValueError, match=r"the column metadata is .* take questions of data.gener"):
        reasoning_gym_reward("<answer>1</answer>", "1", extra={"metadata": metadata})


def test_credit_is_a_reward_and_no_verdict(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text(
        "from megatron_resrl.rewards.credit import Credit\n"
        "def half(response, ground_truth, **context):\n"
        "    return Credit(float(response == '7'), 0.5)\n"
    )
    tasks = [GradingTask(text, "7", "", "a", {}, "prompt 0") for text in ("7", "8")]
    with Grader(f"{file}:half", workers=1, timeout_s=60.0) as grader:
        grades = grader.grade(tasks)
    assert [(each.score, each.reward) for each in grades] == [(1.0, 0.5), (0.0, 0.5)]


@needs_reasoning_gym
def test_reasoning_gym_judges_the_rows_of_its_data_sources(tmp_path: Path) -> None:
    own = row("leg_counting")
    extra = {key: own[key] for key in ("metadata", "task_options")}
    partly = f"<answer>{own['answer']} legs</answer>"
    share = len(own["answer"]) / len(f"{own['answer']} legs")
    functions = (
        {"name": "reasoning_gym", "weight": 2.0, "data_sources": ["reasoning_gym:*"]},
        {"name": "integer", "data_sources": ["gsm8k"]},
    )
    reward = RewardConfig(functions=functions, timeout_s=60.0)
    tasks = [
        GradingTask(partly, own["answer"], "", own["data_source"], extra, "prompt 0"),
        GradingTask("7", "7", "", "gsm8k", {}, "prompt 1"),
    ]
    with GraderPools([reward], tmp_path / "log") as pools:
        grades = pools.of(reward).grade(tasks)
    assert [each.score for each in grades] == [0.0, 1.0]
    assert [each.reward for each in grades] == [2.0 * share, 1.0]
    assert grades[0].parts == {"reasoning_gym": share}
