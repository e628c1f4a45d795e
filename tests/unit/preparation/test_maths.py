"""Layouts of public sets of mathematics."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from megatron_resrl.data.rows import read_rows
from megatron_resrl.errors import InputError
from megatron_resrl.preparation.datasets import DATASETS, find_dataset
from megatron_resrl.preparation.maths import maths_question
from megatron_resrl.rewards.math import check_ground_truth

DAPO = (
    "Solve the following math problem step by step. The last line of your response should be of "
    "the form Answer: $Answer (without quotes) where $Answer is the answer to the problem.\n\n"
    'What is 1 + 1?\n\nAnd why?\n\nRemember to put your answer on its own line after "Answer:".'
)


@pytest.mark.parametrize(
    ("row", "answer"),
    [
        ({"question": "Q", "answer": "So it is 4.\n#### 1,234"}, "1,234"),
        (
            {"problem": "Q", "solution": r"Thus \boxed{\frac{1}{2}}."},
            r"\frac{1}{2}",
        ),
        ({"problem": "Q", "solution": "Long.", "answer": "27.0", "question": "Q"}, "27.0"),
        ({"question": "Q", "solution": ["s"], "final_answer": ["$2$", "$3$"]}, "$2$, $3$"),
        ({"question": "Q", "final_answer": '["7"]'}, "7"),
        (
            {
                "prompt": [{"role": "user", "content": "Q"}],
                "reward_model": {"ground_truth": {"target": "70"}, "style": "rule"},
            },
            "70",
        ),
        ({"prompt": [{"role": "user", "content": "Q"}], "reward_model": {"ground_truth": 3}}, "3"),
    ],
)
def test_maths_question_reads_public_layouts(row: dict[str, Any], answer: str) -> None:
    question = maths_question(row, "row 0", "set")
    assert question is not None
    assert (question.prompt, question.about, question.answer) == ("Q", "Q", answer)
    assert question.data_source == "set"


def test_maths_question_takes_instructions_off() -> None:
    row = {"prompt": [{"role": "user", "content": DAPO}], "reward_model": {"ground_truth": "2"}}
    question = maths_question(row, "row 0", "set")
    assert question is not None
    assert question.prompt == "What is 1 + 1?\n\nAnd why?"


def test_maths_question_leaves_rows_without_answer_out() -> None:
    row = {"prompt": "Q", "reward_model": {"ground_truth": {"target": "", "solution": "x"}}}
    assert maths_question(row, "row 0", "set") is None
    assert maths_question({"problem": "Q", "solution": "No box."}, "row 0", "set") is None
    assert maths_question({"problem": "Q", "answer": "E_{1},E_{2}"}, "", "s") is None
    assert maths_question({"problem": " ", "answer": "1"}, "row 0", "set") is None


def test_maths_question_names_wrong_columns() -> None:
    with pytest.raises(InputError, match=r"row 3: it has the columns text, label, and none of pr"):
        maths_question({"text": "Q", "label": "1"}, "row 3", "set")
    talk = [{"role": role, "content": "Q"} for role in ("user", "assistant", "user")]
    with pytest.raises(InputError, match="row 0: prompt has 3 messages"):
        maths_question({"prompt": talk, "answer": "1"}, "row 0", "set")


@pytest.mark.parametrize(
    ("name", "rows", "first"),
    [
        ("gsm8k_train", 30, "72"),
        ("math_train", 40, "0"),  # 4 of 44 have no answer.
        ("dapo_math_17k", 40, "34"),
        ("math500", 40, r"\left( 3, \frac{\pi}{2} \right)"),
        ("aime24", 10, "204"),
        ("aime25", 30, "70"),
        ("amc23", 40, "27.0"),
    ],
)
def test_datasets_read_their_public_files(reference: Path, name, rows, first) -> None:
    dataset = DATASETS[name]
    path = reference / "questions" / f"{name}.parquet"
    questions = [dataset.form(row, where, name) for where, row in read_rows(path)]
    found = [question for question in questions if question]
    assert (len(found), found[0].answer) == (rows, first)
    for question in found:
        check_ground_truth(question.answer)


def test_find_dataset_names_the_nearest() -> None:
    with pytest.raises(InputError, match="no such set; did you mean dapo_math_17k"):
        find_dataset("dapo_math17k")
    with pytest.raises(InputError, match="there are gsm8k, "):
        find_dataset("zzz")
