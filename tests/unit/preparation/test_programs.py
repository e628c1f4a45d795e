"""Programming tasks become tests that the reward `code` runs."""

from __future__ import annotations

import base64
import json
import os
import pickle
import zlib
from pathlib import Path
from typing import Any

import pytest
from sandboxes import require_any

from megatron_resrl.data.rows import read_rows
from megatron_resrl.errors import InputError
from megatron_resrl.preparation.programs import (
    contest_question,
    function_question,
    mbpp_question,
    mbpp_rows,
)
from megatron_resrl.preparation.question import Question
from megatron_resrl.rewards.code import check_ground_truth, code_reward

HEADER = '''import math


def doubled(x):
    return 2 * x


def undoubled(y):
    """ The number whose double is y """
'''
BODY = "    return y // 2\n"


def graded(program: str, question: Question | None) -> float:
    assert question is not None
    check_ground_truth(question.answer)
    return code_reward(f"```python\n{program}\n```", question.answer)


def test_function_question_keeps_what_its_test_uses() -> None:
    require_any()
    test = "def check(candidate):\n    assert candidate(doubled(5)) == 5\n"
    row = {"task_id": "T/1", "prompt": HEADER, "entry_point": "undoubled", "test": test}
    question = function_question(row, "row 0", "humaneval")
    assert question is not None
    assert (question.prompt, question.columns) == (HEADER, {"task_id": "T/1"})
    assert graded(HEADER + BODY, question) == 1
    assert graded("def undoubled(y):\n    return y // 2", question) == 1
    assert graded("def undoubled(y):\n    return y", question) == 0


def evalplus(task: str = "T/1", header: str = HEADER, **more: Any) -> dict[str, Any]:
    row = {
        "task_id": task,
        "prompt": header,
        "entry_point": "undoubled",
        "canonical_solution": BODY,
        "base_input": "[[10], [7]]",
        "plus_input": "[[-4]]",
    }
    return row | more


def test_function_question_runs_the_solution_for_results() -> None:
    require_any()
    question = function_question(evalplus(), "row 0", "humaneval_plus")
    assert question is not None
    assert json.loads(question.answer) == {
        "fn_name": "undoubled",
        "inputs": [[10], [7], [-4]],
        "outputs": [5, 3, -2],
    }
    assert graded(HEADER + BODY, question) == 1
    assert graded("def undoubled(y):\n    return int(y / 2)", question) == 1
    assert graded("def undoubled(y):\n    return round(y / 2)", question) == 0  # 7 / 2 is 4.


def test_function_question_leaves_results_out_that_are_no_data() -> None:
    """A set, an exception and not a number are no results that could be compared."""
    require_any()
    body = "    return {1: {2}, 2: float('nan'), 3: [1]}[y]\n"
    row = evalplus(canonical_solution=body, base_input="[[1], [2], [3], [4]]", plus_input="[[3]]")
    question = function_question(row, "row 0", "humaneval_plus")
    assert question is not None
    assert json.loads(question.answer)["inputs"] == [[3], [3]]
    assert function_question(row | {"base_input": "[[1]]", "plus_input": "[[4]]"}, "", "s") is None


def test_function_question_takes_any_root_as_right() -> None:
    require_any()
    header = (
        "def poly(xs: list, x: float):\n    return sum(c * x**i for i, c in enumerate(xs))\n\n\n"
        'def find_zero(xs: list):\n    """ A root """\n'
    )
    row = evalplus("HumanEval/32", header, entry_point="find_zero")
    row |= {"base_input": "[[[-1, 0, 1]]]", "plus_input": "[[[0, 2]]]"}
    question = function_question(row, "row 0", "humaneval_plus")
    for root in (1, -1):
        program = f"def find_zero(xs):\n    return 0 if xs[0] == 0 else {root}"
        assert graded(program, question) == 1
    assert graded("def find_zero(xs):\n    return 0", question) == 0


def test_function_question_names_code_that_is_none() -> None:
    with pytest.raises(InputError, match="row 3: prompt is no Python"):
        function_question(evalplus(header="def f(:"), "row 3", "humaneval_plus")


def test_mbpp_question_shows_its_tests() -> None:
    require_any()
    row = {
        "text": "Write a function to add one.",
        "task_id": "601",
        "test_setup_code": "one = 1",
        "test_list": '["assert add_one(1) == 1 + one", "assert add_one(-1) == 0"]',
    }
    question = mbpp_question(row, "row 0", "mbpp")
    assert question is not None
    assert question.prompt.endswith("assert add_one(1) == 1 + one\nassert add_one(-1) == 0")
    assert question.about == row["text"]
    assert graded("def add_one(x):\n    return x + 1", question) == 1
    assert graded("def add_one(x):\n    return 2", question) == 0


def test_mbpp_question_names_what_looks_like_a_builtin() -> None:
    require_any()
    row = {"text": "Sum of common divisors.", "task_id": 11, "test_list": ["assert sum(4, 6) == 3"]}
    code = "def helper():\n    pass\n\ndef sum(a, b):\n    return 3\n"
    question = mbpp_question(row | {"code": code}, "row 0", "mbpp")
    assert question is not None
    assert json.loads(question.answer)["entry_point"] == "sum"
    assert graded(code, question) == 1
    assert graded("def sum(a, b):\n    return 4", question) == 0
    with pytest.raises(InputError, match="row 4: its tests call nothing of its code"):
        mbpp_question(row | {"code": "x = 1"}, "row 4", "mbpp")


def test_mbpp_question_tests_more_than_it_shows() -> None:
    """The layout of MBPP+: a program of many tests beside the three that are shown."""
    require_any()
    test = (
        "def assertion(out, exp, atol):\n    assert out == exp\n\n"
        "inputs = [[1], [10]]\nresults = [2, 11]\n"
        "for inp, exp in zip(inputs, results):\n    assertion(add_one(*inp), exp, 0)\n"
    )
    row = {"task_id": 2, "prompt": "Add one.", "test_list": ["assert add_one(1) == 2"]}
    question = mbpp_question(row | {"test_imports": ["import math"], "test": test}, "", "mbpp_plus")
    assert graded("def add_one(x):\n    return x + 1", question) == 1
    assert graded("def add_one(x):\n    return 2", question) == 0


def test_mbpp_rows_are_those_of_a_split(tmp_path: Path) -> None:
    path = tmp_path / "mbpp.jsonl"
    path.write_text("".join(f'{{"task_id": "{n}"}}\n' for n in (10, 11, 510, 511, 601)))
    assert [row["task_id"] for _, row in mbpp_rows(11, 510, [path])] == ["11", "510"]


def packed(tests: list[dict[str, Any]]) -> str:
    return base64.b64encode(zlib.compress(pickle.dumps(json.dumps(tests)))).decode()


def test_contest_question_reads_livecodebench() -> None:
    require_any()
    shown = [{"input": "1 2\n", "output": "3\n", "testtype": "stdin"}]
    hidden = [{"input": "5 6\n", "output": "11\n", "testtype": "stdin"}]
    row = {
        "question_content": "Add two numbers.",
        "question_id": "abc1",
        "starter_code": "",
        "public_test_cases": json.dumps(shown),
        "private_test_cases": packed(hidden),
        "metadata": "{}",
    }
    question = contest_question(row, "row 0", "livecodebench")
    assert question is not None
    assert "standard input" in question.prompt
    assert graded("print(sum(map(int, input().split())))", question) == 1
    assert graded("print(3)", question) == 0
    plain = contest_question(row | {"private_test_cases": json.dumps(hidden)}, "", "s")
    assert plain is not None
    assert plain.answer == question.answer


def test_contest_question_reads_functions() -> None:
    require_any()
    tests = [{"input": "[1, 2]\n3", "output": "[3, 6]", "testtype": "functional"}]
    row = {
        "question_content": "Scale.",
        "starter_code": "class Solution:\n    def scale(self, xs, k):\n        ",
        "public_test_cases": json.dumps(tests),
        "private_test_cases": "[]",
        "metadata": '{"func_name": "scale"}',
    }
    question = contest_question(row, "row 0", "livecodebench")
    assert question is not None
    assert "Begin with this code:\n\nclass Solution:" in question.prompt
    program = "class Solution:\n    def scale(self, xs, k):\n        return [k * x for x in xs]"
    assert graded(program, question) == 1
    assert graded(program.replace("k * x", "x"), question) == 0


@pytest.mark.parametrize(
    ("tests", "truth"),
    [
        ([{"input": "1", "output": "2"}], {"inputs": ["1"], "outputs": ["2"]}),
        ({"inputs": ["1"], "outputs": ["2"]}, {"inputs": ["1"], "outputs": ["2"]}),
        (
            [{"fn_name": "f", "input": [1], "output": 2, "type": "function_call"}],
            {"fn_name": "f", "inputs": [[1]], "outputs": [2]},
        ),
        (
            [{"input": "1", "output": "2", "metadata": {"func_name": "f"}}],
            {"fn_name": "f", "inputs": [[1]], "outputs": [2]},
        ),
    ],
)
def test_contest_question_reads_layouts_of_deepcoder(tests: Any, truth: dict[str, Any]) -> None:
    for value in (tests, json.dumps(tests)):
        question = contest_question({"problem": "P", "tests": value}, "row 0", "deepcoder")
        assert question is not None
        assert json.loads(question.answer) == truth
        check_ground_truth(question.answer)


def test_contest_question_leaves_out_what_it_cannot_judge() -> None:
    """Tasks of Codeforces with a checker of their own, and tasks without tests."""
    row = {
        "description": "Sort.",
        "input_format": "Numbers.",
        "output_format": "Numbers.",
        "official_tests": [{"input": "2 1", "output": "1 2"}],
    }
    question = contest_question(row, "row 0", "codeforces")
    assert question is not None
    assert question.prompt.startswith("Sort.\n\nInput\nNumbers.\n\nOutput\nNumbers.\n\n")
    assert contest_question(row | {"generated_checker": "import sys"}, "", "s") is None
    assert contest_question(row | {"official_tests": []}, "", "s") is None
    assert (
        contest_question({"problem": "P", "tests": {"inputs": [], "outputs": []}}, "", "s") is None
    )


class _Runs:
    """A pickle that would run a command where it is read carelessly."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


def test_contest_question_runs_nothing_of_a_pickle(tmp_path: Path) -> None:
    content = pickle.dumps(_Runs(tmp_path / "ran"))
    row = {
        "question_content": "Q",
        "public_test_cases": "[]",
        "private_test_cases": base64.b64encode(zlib.compress(content)).decode(),
    }
    with pytest.raises(InputError, match="private_test_cases cannot be read"):
        contest_question(row, "row 0", "livecodebench")
    assert not (tmp_path / "ran").exists()


def test_function_question_reads_humaneval_plus(reference: Path) -> None:
    """Five real tasks: their own solutions pass, and a wrong one does not."""
    require_any()
    rows = read_rows(reference / "questions/humaneval_plus_mini.parquet")
    for where, row in rows:
        question = function_question(row, where, "humaneval_plus")
        assert graded(row["prompt"] + row["canonical_solution"], question) == 1
        assert graded(f"def {row['entry_point']}(*arguments):\n    return 'no'", question) == 0
