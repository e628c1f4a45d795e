"""Countdown tasks, as TinyZero's and UFT's files have them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from megatron_resrl.data.rows import read_rows
from megatron_resrl.errors import InputError
from megatron_resrl.preparation.countdown import countdown_question
from megatron_resrl.rewards.countdown import countdown_reward


def test_countdown_question_reads_public_layouts(reference: Path) -> None:
    for where, row in read_rows(reference / "questions/countdown_test.parquet"):
        question = countdown_question(row, where, "countdown")
        assert json.loads(question.answer) == row["reward_model"]["ground_truth"]
        # The file's own solution.
        assert countdown_reward(row["answer"], question.answer) == 1
    plain = countdown_question({"nums": [3, 4], "target": 12}, "row 0", "countdown")
    assert "numbers 3, 4 that equals 12." in plain.prompt
    assert countdown_reward("<answer>3 * 4</answer>", plain.answer) == 1
    assert countdown_reward("<answer>3 + 4</answer>", plain.answer) == 0


def test_countdown_question_is_the_same_in_another_order() -> None:
    first, second = (
        countdown_question({"nums": numbers, "target": 5}, "row 0", "countdown")
        for numbers in ([1, 4], [4, 1])
    )
    assert first.about == second.about


def test_countdown_question_names_wrong_columns() -> None:
    with pytest.raises(InputError, match=r"row 1: .* none of numbers, nums"):
        countdown_question({"target": 5}, "row 1", "countdown")
