"""The reward `code`: which program counts, which output is right, and which tests can be run."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sandboxes import require_any

from megatron_resrl.config.schema_questions import CodeConfig, RewardConfig
from megatron_resrl.rewards.code import check_ground_truth, code_reward
from megatron_resrl.rewards.code_block import last_program
from megatron_resrl.rewards.code_results import same_output, same_value
from megatron_resrl.rewards.grader import Grade, GradingTask
from megatron_resrl.rewards.grader_pools import GraderPools

PATIENT = CodeConfig(timeout_s=20.0)
PRINTED = {"inputs": ["1\n", "2\n", "3\n"], "outputs": ["2", "4", "6"]}
CALLED = {"fn_name": "double", "inputs": ["[1]", [2], [3]], "outputs": [2, "4", 6]}
ASSERTS = {"asserts": ["assert double(1) == 2", "assert double(2) == 4", "assert double(3) == 6"]}
HUMAN_EVAL = {
    "asserts": "METADATA = {}\ndef check(candidate):\n    assert candidate(3) == 6\n",
    "entry_point": "double",
}


def fenced(program: str) -> str:
    return f"My answer:\n```python\n{program}\n```\n"


@pytest.mark.parametrize(
    ("response", "program"),
    [
        ("```python\nA\n```", "A\n"),
        ("```python\nA\n```\nbetter:\n```py\nB\n```\nDone.", "B\n"),
        ("```\nA\n```", "A\n"),
        ("```python\nA\n```\nIt prints\n```\n8\n```", "A\n"),
        ("```python\nA\n```\nIt prints\n```text\n8\n```", "A\n"),
        ("```Python title=x\nA\n```", "A\n"),
        ("~~~python\nA\n~~~", "A\n"),
        ("````python\nA = '''\n```\n'''\n````", "A = '''\n```\n'''\n"),
        ("1. So:\n   ```python\n   A\n     B\n   ```", "A\n  B\n"),
        ("<think>```python\nA\n```</think>\n```python\nB\n```", "B\n"),
        ("```python\r\nA\r\n```", "A\r\n"),
        ("```python\n```", ""),
        ("```python\nA\n```\n```python\ncut off", "A\n"),
        ("```python\ncut off", None),
        ("print(1)", None),
        ("`print(1)`", None),
        ("", None),
    ],
)
def test_last_program_finds_the_last_closed_block(response: str, program: str | None) -> None:
    assert last_program(response) == program


@pytest.mark.parametrize(
    ("printed", "expected", "same"),
    [
        ("8", "8\n", True),
        ("8  \n\n", "8", True),
        ("1  2\t3", "1 2 3", True),
        ("1\n2", "1 2", False),
        ("8", "9", False),
        ("", "8", False),
        ("", "", True),
        ("0.3333333", "0.33333333", True),
        ("0.3334", "0.33333333", False),
        ("1e-7", "1.0e-7", True),
        ("8.0", "8", False),
        ("8", "8.0", True),
        ("nan", "1.5", False),
        ("YES", "Yes", False),
        ("1\n\n2", "1\n2", False),
        ("8\n8", "8", False),
    ],
)
def test_same_output_compares_words_and_lines(printed: str, expected: str, same: bool) -> None:
    assert same_output(printed, expected) is same


@pytest.mark.parametrize(
    ("result", "expected", "same"),
    [
        (2, 2, True),
        (2.0, 2, True),
        (0.1 + 0.2, 0.3, True),
        (0.31, 0.3, False),
        (True, 1, False),
        (1, True, False),
        (True, True, True),
        ((1, (2,)), [1, [2]], True),
        ([1], [1, 2], False),
        ({1: 2}, {"1": 2}, True),
        ({1: 2, "1": 2}, {"1": 2}, False),
        ({"a": 1}, {"b": 1}, False),
        ("a", "a", True),
        (b"a", "a", False),
        (None, None, True),
        (0, None, False),
        (10**400, 1.0, False),
        (10**400, 10**400, True),
        (float("nan"), float("nan"), False),
        ({1}, [1], False),
    ],
)
def test_same_value_compares_data(result: Any, expected: Any, same: bool) -> None:
    assert same_value(result, expected) is same


@pytest.mark.parametrize(
    "value",
    [
        PRINTED,
        json.dumps(PRINTED),
        CALLED,
        ASSERTS,
        ASSERTS["asserts"],
        np.array(ASSERTS["asserts"], dtype=object),
        HUMAN_EVAL,
        {"asserts": json.dumps(ASSERTS["asserts"])},
        {name: json.dumps(items) for name, items in PRINTED.items()},
        {"asserts": ["assert sum(10, 15) == 6"], "entry_point": "sum"},
        {"asserts": ["assert math.isclose(f(1), 2)"], "setup": ["import math", "x = 1"]},
    ],
)
def test_check_ground_truth_takes_tests(value: Any) -> None:
    check_ground_truth(value)


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (42, "is 42, and holds no tests: give {"),
        ("print", "is 'print', and holds no tests"),
        ({}, "has the fields nothing, and no tests"),
        ({"inputs": ["1"]}, "has the fields inputs, and no tests"),
        ({"inputs": [], "outputs": []}, "inputs is []: give a list of at least one"),
        ({"inputs": ["1"], "outputs": []}, "outputs is []: give a list of at least one"),
        ({"inputs": ["1", "2"], "outputs": ["1"]}, "has 2 inputs and 1 outputs"),
        ({"inputs": [1], "outputs": ["1"]}, "inputs holds 1, which is no text"),
        ({"inputs": ["1"], "outputs": [1], "fn_name": "f"}, "test 0 has the arguments 1: give a"),
        ({"inputs": [[1]], "outputs": [1], "fn_name": "f("}, "fn_name is 'f(': give the name"),
        ({"asserts": []}, "asserts is []: give a list of at least one"),
        ({"asserts": ["assert f(1 == 2"]}, "test 0 is no Python ('(' was never closed)"),
        ({"asserts": ["assert f(1)"], "setup": "import"}, "setup is no Python"),
        ({"asserts": ["assert len([]) == 0"]}, "call nothing of the program, the first is 'assert"),
        ({"asserts": [3]}, "asserts holds 3, which is no text"),
        ({"asserts": ["assert f(1)"], "entry_point": "f()"}, "entry_point is 'f()': give the name"),
        (["assert f(1) ==="], "test 0 is no Python"),
    ],
)
def test_check_ground_truth_refuses_what_cannot_be_run(value: Any, said: str) -> None:
    with pytest.raises(ValueError, match=re.escape(said)):
        check_ground_truth(value)


@pytest.mark.parametrize(
    ("tests", "right", "half"),
    [
        (PRINTED, "print(int(input()) * 2)", "x = int(input())\nprint(x * 2 if x < 3 else 0)"),
        (CALLED, "def double(x): return 2 * x", "def double(x): return 2 * x if x < 3 else 0"),
        (ASSERTS, "def double(x): return 2 * x", "def double(x): return 2 * x if x < 3 else 0"),
    ],
    ids=["printed", "called", "asserts"],
)
def test_code_reward_is_1_for_all_tests_only(tests: Any, right: str, half: str) -> None:
    require_any()
    assert code_reward(fenced(right), tests, settings=PATIENT) == 1.0
    assert code_reward(fenced(half), tests, settings=PATIENT) == 0.0
    share = code_reward(fenced(half), tests, settings=PATIENT, partial_credit=True)
    assert share == pytest.approx(2 / 3)
    assert code_reward(right, tests, settings=PATIENT) == 0.0  # It is in no block.
    assert code_reward(fenced(f"{right}\nraise SystemExit(1)"), tests, settings=PATIENT) == 0.0


def test_code_reward_runs_human_eval_tests() -> None:
    require_any()
    right, wrong = fenced("def double(x): return x + x"), fenced("def double(x): return x * x")
    assert code_reward(right, HUMAN_EVAL, settings=PATIENT) == 1.0
    assert code_reward(wrong, HUMAN_EVAL, settings=PATIENT) == 0.0


def test_code_reward_does_not_blame_programs_for_broken_tests() -> None:
    require_any()
    broken = {"asserts": ["assert np.sum(double(1)) == 2"], "entry_point": "double"}
    with pytest.raises(ValueError, match="tests cannot be run: NameError: name 'np'"):
        code_reward(fenced("def double(x): return x"), broken, settings=PATIENT)


def graded(tmp_path: Path, code: CodeConfig, program: str, **settings: Any) -> Grade:
    """What a run's grader says of a program that reads 1 and should print 2."""
    require_any()
    reward = RewardConfig(function="code", workers=1, timeout_s=60.0, code=code, **settings)
    tests = {"inputs": ["1", "1"], "outputs": ["2", "3"]}
    task = GradingTask(fenced(program), tests, "", "", {}, "prompt 0")
    with GraderPools([reward], tmp_path / "rewards.log") as pools:
        [grade] = pools.of(reward).grade([task])
    return grade


@pytest.mark.setting("reward.code.timeout_s", "reward.options")
def test_grader_runs_programs_as_settings_say(tmp_path: Path) -> None:
    options = {"partial_credit": True}
    slow = "import time\ntime.sleep(0.5)\nprint(2)"
    short = graded(tmp_path, CodeConfig(timeout_s=0.2), slow, options=options)
    assert short == Grade(0.0, timed_out=False)
    assert graded(tmp_path, PATIENT, slow, options=options) == Grade(0.5, timed_out=False)


@pytest.mark.setting("reward.code.memory_mb")
def test_code_reward_bounds_memory() -> None:
    require_any()
    large, tests = fenced("x = bytes(600 << 20)\nprint(2)"), {"inputs": [""], "outputs": ["2"]}
    assert code_reward(large, tests, settings=PATIENT) == 0.0
    roomy = CodeConfig(timeout_s=20.0, memory_mb=1024)
    assert code_reward(large, tests, settings=roomy) == 1.0


@pytest.mark.setting("reward.code.packages")
def test_code_reward_lets_programs_import_packages(tmp_path: Path) -> None:
    require_any()
    (tmp_path / "doubling.py").write_text("def double(x): return 2 * x\n")
    tmp_path.chmod(0o755)
    with_it = CodeConfig(timeout_s=20.0, packages=str(tmp_path))
    tests = {"asserts": ["assert double(1) == doubling.double(1)"], "setup": "import doubling"}
    program = fenced("from doubling import double")
    assert code_reward(program, tests, settings=with_it) == 1.0
    with pytest.raises(ValueError, match="No module named 'doubling'"):
        code_reward(program, tests, settings=PATIENT)
