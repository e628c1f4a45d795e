"""BFCL's conversations get the verdicts of BFCL's own checker, where its package is installed."""

from __future__ import annotations

import itertools
import json
import random
import sys
from typing import Any

import pytest

from megatron_resrl.data.records import PromptRecord
from megatron_resrl.errors import SettingError
from megatron_resrl.rollout.environments.bfcl_conversation import (
    CATEGORIES,
    BFCLConversation,
    questions,
)
from megatron_resrl.rollout.environments.registry import get_environment

Turns = list[list[list[str]]]
"""Calls of each step of each request."""
_names = itertools.count()


@pytest.fixture(scope="module")
def checker() -> Any:
    name = "bfcl_eval.eval_checker.multi_turn_eval.multi_turn_checker"
    return pytest.importorskip(name, reason="pip install --no-deps bfcl-eval==2026.3.23")


def record_of(row: dict[str, Any]) -> PromptRecord:
    extra = {key: row[key] for key in row if key not in ("prompt", "answer")}
    return PromptRecord(0, row["prompt"], row["answer"], "test", extra)


def played(row: dict[str, Any], turns: Turns) -> float | None:
    """The score of a policy that makes these calls."""
    conversation = BFCLConversation(steps_per_request=64)
    conversation.reset(record_of(row), (0,))
    for steps in turns:
        for calls in steps:
            assert not conversation.step(f"[{', '.join(calls)}]").done
        ended = conversation.step("That is done.")
        if ended.done:
            return ended.score
    raise AssertionError("the conversation goes on after its last request")


def right_turns(row: dict[str, Any]) -> Turns:
    """The right calls, each a step of its own."""
    return [[[call] for call in calls] for calls in json.loads(row["calls"])]


def theirs(checker: Any, row: dict[str, Any], turns: Turns) -> bool:
    entry = {
        "id": row["id"],
        "initial_config": json.loads(row["world"]),
        "involved_classes": json.loads(row["classes"]),
    }
    # The package keeps a world for each name.
    name = f"policy{next(_names)}"
    truth = json.loads(row["calls"])
    return checker.multi_turn_checker(turns, truth, entry, "", name)["valid"]


def without_a_call(turns: Turns, generator: random.Random) -> None:
    steps = generator.choice([steps for steps in turns if steps])
    steps.pop(generator.randrange(len(steps)))


def with_a_call_again(turns: Turns, generator: random.Random) -> None:
    steps = generator.choice([steps for steps in turns if steps])
    steps.append(list(steps[0]))


def backwards(turns: Turns, generator: random.Random) -> None:
    generator.choice(turns).reverse()


def with_another_value(turns: Turns, generator: random.Random) -> None:
    calls = [calls for steps in turns for calls in steps if "='" in calls[0]]
    if calls:
        changed = generator.choice(calls)
        changed[0] = changed[0].replace("='", "='x", 1)


def with_an_unknown_call(turns: Turns, generator: random.Random) -> None:
    generator.choice(turns).append(["fly(height=3)"])


@pytest.mark.parametrize("category", CATEGORIES)
@pytest.mark.usefixtures("checker")
def test_right_calls_of_all_conversations_score_one(category: str) -> None:
    rows = list(questions(category))
    assert len(rows) == 200
    assert [played(row, right_turns(row)) for row in rows] == [1.0] * len(rows)


@pytest.mark.parametrize(
    "change",
    [
        without_a_call,
        with_a_call_again,
        backwards,
        with_another_value,
        with_an_unknown_call,
    ],
)
def test_score_is_the_verdict_of_the_package(checker: Any, change: Any) -> None:
    generator = random.Random(0)
    verdicts = []
    for row in itertools.islice(questions("multi_turn_base"), 0, None, 2):
        turns = right_turns(row)
        change(turns, generator)
        verdicts.append(theirs(checker, row, turns))
        assert played(row, turns) == float(verdicts[-1]), (row["id"], turns)
    # A call of no function changes nothing, and everything else is at times a fault.
    assert all(verdicts) == (change is with_an_unknown_call)


@pytest.mark.usefixtures("checker")
def test_conversation_shows_results_and_the_next_request() -> None:
    row = next(questions("multi_turn_base"))
    conversation = BFCLConversation(score="share")
    conversation.reset(record_of(row), (0,))
    first, second, *_ = json.loads(row["calls"])
    made = conversation.step(f"[{', '.join(first)}]")
    assert (made.done, made.score) == (False, 0.0)
    assert made.text.splitlines()[0].startswith("cd: ")
    after = conversation.step("It is moved.")
    assert after.text == json.loads(row["requests"])[0]
    assert (after.done, after.score) == (False, 1 / 4)
    conversation.step(f"[{second[0]}]")
    # The search is still to be made.
    wrong = conversation.step("I found nothing.")
    assert (wrong.done, wrong.score) == (True, 1 / 4)


@pytest.mark.usefixtures("checker")
@pytest.mark.parametrize(
    ("turn", "said"),
    [
        ("[_load_scenario(scenario={})]", "there is no function '_load_scenario'"),
        ("[GorillaFileSystem.ls()]", "there is no function 'GorillaFileSystem.ls'"),
        # What would be a call in Python is a text.
        ("[cd(folder=__import__('os').getcwd())]", "No such file or directory"),
        ("[cd(directory='document')]", "unexpected keyword argument 'directory'"),
    ],
)
def test_conversation_answers_calls_that_fail(turn: str, said: str) -> None:
    row = next(questions("multi_turn_base"))
    conversation = BFCLConversation()
    conversation.reset(record_of(row), (0,))
    answer = conversation.step(turn)
    assert said in answer.text
    assert not answer.done


@pytest.mark.usefixtures("checker")
def test_conversation_takes_other_code_for_no_call() -> None:
    row = next(questions("multi_turn_base"))
    conversation = BFCLConversation()
    conversation.reset(record_of(row), (0,))
    ended = conversation.step("[__import__('os').getcwd()]")
    assert (ended.done, ended.score) == (True, 0.0)


@pytest.mark.usefixtures("checker")
def test_conversation_ends_by_its_steps() -> None:
    row = next(questions("multi_turn_base"))
    conversation = BFCLConversation(steps_per_request=2)
    conversation.reset(record_of(row), (0,))
    said = [conversation.step("[ls()]") for _ in range(3)]
    assert [(each.done, each.score) for each in said] == [(False, 0.0)] * 2 + [(True, 0.0)]


@pytest.mark.usefixtures("checker")
def test_conversation_offers_a_late_function_late() -> None:
    row = next(questions("multi_turn_miss_func"))
    system, _ = row["prompt"]
    assert '{"name": "sort"' not in system["content"]
    late = [each for each in json.loads(row["requests"]) if '{"name": "sort"' in each]
    assert len(late) == 1


@pytest.mark.usefixtures("checker")
def test_conversation_refuses_other_rows_and_options() -> None:
    with pytest.raises(ValueError, match="has no text in the column id; write the file with tools"):
        BFCLConversation().reset(PromptRecord(0, [], "-", "test", {}), (0,))
    with pytest.raises(ValueError, match="score is 'mean'; give all or share"):
        BFCLConversation(score="mean")
    with pytest.raises(ValueError, match="steps_per_request is 0; give at least 1"):
        BFCLConversation(steps_per_request=0)
    with pytest.raises(ValueError, match="there is no category 'memory'; give one of multi_turn"):
        next(questions("memory"))


def test_bfcl_says_how_to_get_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    module = "bfcl_eval.eval_checker.multi_turn_eval.multi_turn_checker"
    monkeypatch.setitem(sys.modules, module, None)
    said = r"rollout\.environment = 'bfcl'.*is not installed.*pip install --no-deps bfcl-eval"
    with pytest.raises(SettingError, match=said):
        get_environment("bfcl", {})
