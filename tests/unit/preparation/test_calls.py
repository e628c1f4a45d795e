"""Questions on functions become ground truths that the reward `function_calling` takes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from megatron_resrl.data.rows import read_rows
from megatron_resrl.errors import InputError
from megatron_resrl.preparation.calls import bfcl_question, bfcl_rows, toolrl_question
from megatron_resrl.rewards.function_calling import check_ground_truth, function_calling_reward

ADD = {
    "name": "numbers.add",
    "description": "Adds two numbers.",
    "parameters": {
        "type": "dict",
        "properties": {"a": {"type": "integer"}, "b": {"type": "float"}},
        "required": ["a"],
    },
}
ASKED = [[{"role": "user", "content": "What is 1 plus 2.5?"}]]
TRUTH = [{"numbers.add": {"a": [1], "b": [2.5]}}]


def row(number: str = "simple_python_0", **more: Any) -> dict[str, Any]:
    return {"id": number, "question": ASKED, "function": [ADD], "ground_truth": TRUTH} | more


@pytest.mark.parametrize("text", [False, True])
def test_bfcl_question_is_what_the_reward_takes(text: bool) -> None:
    """Nested columns may be JSON text."""
    given = {k: json.dumps(v) if text and k != "id" else v for k, v in row().items()}
    question = bfcl_question(given, "row 0", "bfcl")
    system, user = question.prompt
    assert (system["role"], user) == ("system", ASKED[0][0])
    assert json.dumps(ADD) in system["content"]
    check_ground_truth(question.answer)
    for response, score in (
        ("[numbers.add(a=1, b=2.5)]", 1),
        ("[numbers.add(a=1, b=2)]", 0),
        ("[numbers.add(a='1', b=2.5)]", 0),  # The schema says integer.
        ("It is 3.5.", 0),
    ):
        assert function_calling_reward(response, question.answer, extra=question.columns) == score


def test_bfcl_question_without_a_fitting_function_wants_no_call() -> None:
    given = row("irrelevance_7")
    del given["ground_truth"]
    question = bfcl_question(given, "row 0", "bfcl")
    assert question.answer == "[]"
    assert function_calling_reward("None of them adds words.", question.answer) == 1
    assert function_calling_reward("[numbers.add(a=1)]", question.answer) == 0


def test_bfcl_question_keeps_a_system_message() -> None:
    turns = [[{"role": "system", "content": "Be brief."}, *ASKED[0]]]
    question = bfcl_question(row("live_simple_1-2-3", question=turns), "row 0", "bfcl")
    assert [each["role"] for each in question.prompt] == ["system", "user"]
    assert question.prompt[0]["content"].startswith("Be brief.\n\n")
    assert question.columns["category"] == "live_simple"


def test_bfcl_question_names_what_it_cannot_use() -> None:
    with pytest.raises(InputError, match="multi_turn_base_3 is of a category that is not prepared"):
        bfcl_question(row("multi_turn_base_3"), "row 3", "bfcl")
    with pytest.raises(InputError, match="has no ground_truth; leave the folder possible_answer"):
        bfcl_question(row(ground_truth=None), "row 0", "bfcl")


def test_bfcl_rows_join_the_answers_beside_them(tmp_path: Path) -> None:
    """As the publisher's folder is: also with categories that are not read."""
    (tmp_path / "possible_answer").mkdir()
    question = {"id": "parallel_0", "question": ASKED, "function": [ADD]}
    for name, content in (
        ("BFCL_v4_parallel.json", question),
        ("BFCL_v4_multi_turn_base.json", {"id": "multi_turn_base_0"}),
        ("possible_answer/BFCL_v4_parallel.json", {"id": "parallel_0", "ground_truth": TRUTH}),
    ):
        (tmp_path / name).write_text(json.dumps(content) + "\n")
    paths = sorted(tmp_path.rglob("*.json"))
    assert [found for _, found in bfcl_rows(paths)] == [question | {"ground_truth": TRUTH}]


def toolrl(response: str) -> dict[str, Any]:
    prompt = [{"role": "system", "content": "Tools"}, {"role": "user", "content": "<user> Q"}]
    return {"prompt": prompt, "reward_model": {"ground_truth": response, "style": "rule"}}


def test_toolrl_question_takes_the_calls_of_its_response() -> None:
    response = (
        "<think> t </think>\n<tool_call>\n"
        '{"name": "Get News", "parameters": {"page": "1"}}\n'
        '{"name": "f", "parameters": {}}\n</tool_call>'
    )
    question = toolrl_question(toolrl(response), "row 0", "toolrl")
    assert json.loads(question.answer) == [{"Get News": {"page": ["1"]}}, {"f": {}}]
    assert function_calling_reward(response, question.answer) == 1
    assert function_calling_reward(response.replace('"1"', '"2"'), question.answer) == 0


def test_toolrl_question_may_want_no_call() -> None:
    response = "<think> t </think>\n<response> Which text? </response>"
    question = toolrl_question(toolrl(response), "row 0", "toolrl")
    assert question.answer == "[]"
    assert function_calling_reward(response, question.answer) == 1


def test_toolrl_question_names_broken_calls() -> None:
    response = "<think> t </think>\n<tool_call>\n{'name'</tool_call>"
    with pytest.raises(InputError, match=r"row 5: the calls of reward_model\.ground_truth"):
        toolrl_question(toolrl(response), "row 5", "toolrl")


def test_toolrl_question_reads_its_public_file(reference: Path) -> None:
    for where, found in read_rows(reference / "questions/toolrl_test.parquet"):
        question = toolrl_question(found, where, "toolrl")
        check_ground_truth(question.answer)
        truth = found["reward_model"]["ground_truth"]
        assert function_calling_reward(truth, question.answer) == 1
