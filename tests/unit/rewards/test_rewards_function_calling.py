"""Calls of functions: how they are written, and which are right."""

from __future__ import annotations

import json
from typing import Any

import pytest

from megatron_resrl.rewards.function_calling import check_ground_truth, function_calling_reward
from megatron_resrl.rewards.tool_calls import BrokenCall, Call, read_calls

BOOK = {
    "name": "library.book",
    "parameters": {
        "type": "dict",
        "properties": {
            "title": {"type": "string"},
            "copies": {"type": "integer"},
            "price": {"type": "float"},
            "new": {"type": "boolean"},
            "pages": {"type": "array", "items": {"type": "integer"}},
            "weights": {"type": "array", "items": {"type": "float"}},
            "size": {"type": "dict"},
            "shelf": {"type": "any"},
            "authors": {"type": "array", "items": {"type": "dict"}},
            "span": {"type": "tuple", "items": {"type": "integer"}},
        },
        "required": ["title"],
    },
}
ADD = {
    "type": "function",
    "function": {
        "name": "add",
        "parameters": {
            "type": "object",
            "properties": {"a": {"type": "number"}, "b": {"type": "integer"}},
            "required": ["a"],
        },
    },
}
EXTRA = {"tools": json.dumps([BOOK, ADD])}


def score(response: str, ground_truth: Any, extra: dict[str, Any] | None = None) -> float:
    return function_calling_reward(response, ground_truth, extra=EXTRA if extra is None else extra)


def book(**values: list[Any]) -> list[dict[str, Any]]:
    return [{"library.book": {"title": ["Emma"], **values}}]


CALLS = [Call("f", {"a": 1, "b": [True, None]}), Call("g.h", {"x": "y"})]
F, G = (
    '{"name": "f", "arguments": {"a": 1, "b": [true, null]}}',
    '{"name": "g.h", "arguments": {"x": "y"}}',
)


@pytest.mark.parametrize(
    "response",
    [
        f"<tool_call>\n{F}\n</tool_call>\n<tool_call>{G}</tool_call>",
        f"<think>f(a=2)</think>I look.\n<tool_call>\n{F}\n{G}\n</tool_call>",
        f"<tool_call>[{F}, {G}]</tool_call>",
        f"[{F}, {G}]",
        f"These:\n```json\n[{F},\n{G}]\n```",
        f"[{F}, {G.replace('arguments', 'parameters')}]",
        json.dumps(
            [
                {"type": "function", "function": json.loads(F)},
                {"name": "g.h", "arguments": '{"x": "y"}'},
            ]
        ),
        '[f(a=1, b=[True, None]), g.h(x="y")]',
        "f(a=1, b=[True, None]), g.h(x=y)",
        "</think>\n\n```python\n[f(a=1, b=[True, None]),\n g.h(x='y')]\n```",
    ],
)
def test_read_calls_reads_every_notation(response: str) -> None:
    assert read_calls(response) == CALLS


@pytest.mark.parametrize(
    "response", ["", "I cannot call f(a=1) here.", "<think>[f(a=1)]</think> No.", "x = 1", "[]"]
)
def test_read_calls_finds_none_in_other_texts(response: str) -> None:
    assert read_calls(response) == []


@pytest.mark.parametrize(
    "response",
    [
        "<tool_call>{F}",
        "<tool_call></tool_call>",
        '<tool_call>{"name": "f", "arguments": {"a": 1}</tool_call>',
        '<tool_call>{"name": "f"}</tool_call>',
        '<tool_call>{"name": "f", "arguments": [1]}</tool_call>',
        '<tool_call>{"name": "f", "arguments": "{"}</tool_call>',
        f"{F}</tool_call>",
        f"<tool_call>{F}</tool_call></tool_call>",
        '[{"name": "f", "arguments": {"a": 1}',
        "[f(a=1), 2]",
        "[f(a=1",
        "[f(**b)]",
        f"[f(a={'1' * 10_000})]",
        "[f(a=1 + 1)]",
        "[" * 100_000,
        "[f(a=" + "-" * 900 + "1)]",
        "[" + "1," * 999,
    ],
)
def test_broken_calls_score_0_whatever_is_right(response: str) -> None:
    response = response.replace("{F}", F)
    with pytest.raises(BrokenCall):
        read_calls(response)
    assert score(response, []) == 0.0
    assert score(response, [{"f": {"a": [1]}}]) == 0.0


@pytest.mark.parametrize(
    ("arguments", "right", "expected"),
    [
        ("", {}, 1.0),
        # Texts: case, blanks and some punctuation do not count; quotes are alike.
        ("copies=2", {"copies": [1, 2]}, 1.0),
        ("copies=3", {"copies": [1, 2]}, 0.0),
        ("copies=2.0", {"copies": [2]}, 0.0),
        ("copies='2'", {"copies": [2]}, 0.0),
        ("copies=True", {"copies": [1]}, 0.0),
        ("price=3", {"price": [3.0]}, 1.0),
        ("price=3.5", {"price": [3.0, 3.5]}, 1.0),
        ("price='3'", {"price": [3.0]}, 0.0),
        ("new=True", {"new": [True]}, 1.0),
        ("new=1", {"new": [True]}, 0.0),
        # A parameter may be left out if "" is among its values.
        ("", {"copies": [1]}, 0.0),
        ("", {"copies": [1, ""]}, 1.0),
        ("copies=2", {"copies": [1, ""]}, 0.0),
        ("copies=1", {}, 0.0),
        # Lists keep their order, their items' types and the normalisation of texts.
        ("pages=[1, 2]", {"pages": [[2, 1], [1, 2]]}, 1.0),
        ("pages=[2, 1]", {"pages": [[1, 2]]}, 0.0),
        ("pages=[1]", {"pages": [[1, 2]]}, 0.0),
        ("pages=[True, 2]", {"pages": [[1, 2]]}, 0.0),
        ("pages=1", {"pages": [[1]]}, 0.0),
        ("pages=[]", {"pages": [[1], ""]}, 1.0),
        ("weights=[1, 2.5]", {"weights": [[1.0, 2.5]]}, 0.0),
        ("span=(1, 2)", {"span": [[1, 2]]}, 1.0),
        # Objects: fields may be left out where "" is among their values.
        ("size={'w': 1, 'u': 'C.M.'}", {"size": [{"w": [1, 2], "u": ["cm", ""]}]}, 1.0),
        ("size={'w': 1}", {"size": [{"w": [1, 2], "u": ["cm", ""]}]}, 1.0),
        ("size={'u': 'cm'}", {"size": [{"w": [1, 2], "u": ["cm", ""]}]}, 0.0),
        ("size={'w': 3}", {"size": [{"w": [1, 2], "u": ["cm", ""]}]}, 0.0),
        ("size={'w': 1, 'h': 1}", {"size": [{"w": [1, 2]}]}, 0.0),
        ("size={'w': {'x': 1}}", {"size": [{"w": [{"x": [1]}]}]}, 1.0),
        ("authors=[{'n': 'Al'}, {'n': 'Bo'}]", {"authors": [[{"n": ["al"]}, {"n": ["Bo"]}]]}, 1.0),
        ("authors=[{'n': 'Bo'}, {'n': 'Al'}]", {"authors": [[{"n": ["al"]}, {"n": ["Bo"]}]]}, 0.0),
        # Where the right value is of another type than the schema's, it is compared as it is.
        ("shelf=4", {"shelf": [4]}, 1.0),
        ("shelf='4'", {"shelf": [4]}, 0.0),
        ("copies=many", {"copies": ["many"]}, 1.0),
        ("copies=Many", {"copies": ["many"]}, 0.0),
    ],
)  # fmt: skip
def test_function_calling_judges_values_as_bfcl(
    arguments: str, right: dict[str, list[Any]], expected: float
) -> None:
    response = f"[library.book(title='E-m ma.', {arguments})]"
    assert score(response, book(**right)) == expected
    assert score(response, json.dumps(book(**right))) == expected


@pytest.mark.parametrize(
    "response",
    [
        "[library.book()]",
        "[library.book('Emma')]",
        "[library_book(title='Emma')]",
        "[library.book(title='Emma'), library.book(title='Emma')]",
        "[library.book(title='Emma', publisher='Murray')]",
        "library.book(title='Emma') is it",
        "",
    ],
)
def test_function_calling_needs_exactly_the_right_call(response: str) -> None:
    assert score(response, book()) == 0.0


def test_required_parameters_are_those_of_the_schema() -> None:
    right = [{"library.book": {"title": ["Emma", ""]}}]
    assert score("[library.book()]", right) == 0.0
    assert score("[library.book()]", right, {}) == 1.0


def test_parallel_calls_may_come_in_any_order() -> None:
    right = [{"add": {"a": [1.0, 2.0]}}, {"add": {"a": [1.0]}}, *book()]
    calls = ["add(a=1)", "library.book(title='emma')", "add(a=2)"]
    # The first accepts both calls of add: it must get the one that the second does not.
    for first in range(3):
        response = f"[{', '.join(calls[first:] + calls[:first])}]"
        assert score(response, right) == 1.0
    assert score("[add(a=1), add(a=1), library.book(title='emma')]", right) == 1.0
    assert score("[add(a=2), add(a=2), library.book(title='emma')]", right) == 0.0
    assert score("[add(a=1), library.book(title='emma')]", right) == 0.0


@pytest.mark.parametrize("nothing", [[], "[]", {"calls": []}])
def test_where_no_call_is_right_a_response_makes_none(nothing: Any) -> None:
    assert score("None of these functions tells the weather.", nothing) == 1.0
    assert score("[add(a=1)]", nothing) == 0.0
    assert score(f"<tool_call>{F}</tool_call>", nothing) == 0.0


def test_ground_truths_may_bring_schemas_of_their_own() -> None:
    truth = {"calls": [{"add": {"a": [1], "b": [2]}}], "functions": [ADD]}
    assert score("[add(a=1, b=2)]", truth, {}) == 1.0
    assert score("[add(a=1, b=2.0)]", truth, {}) == 0.0


@pytest.mark.parametrize(
    "truth",
    [
        [{"name": "add", "arguments": {"a": 1, "b": 2}}],
        '[{"name": "add", "arguments": {"a": 1, "b": 2}}]',
        '<think>hm</think><tool_call>{"name": "add", "parameters": {"a": 1, "b": 2}}</tool_call>',
    ],
)
def test_ground_truths_may_be_the_calls_themselves(truth: Any) -> None:
    check_ground_truth(truth)
    assert score("[add(b=2, a=1)]", truth) == 1.0
    assert score("[add(a=1)]", truth) == 0.0
    assert score("[add(a=1, b=3)]", truth) == 0.0


@pytest.mark.parametrize(
    "value",
    [
        *(None, 3, "add", "", {}, {"add": {"a": 1}}, [{"add": {"a": 1}}], [{"add": [1]}]),
        [{"add": {"a": [1]}, "sub": {"a": [1]}}],
        "<response>Hello</response>",
    ],
)
def test_function_calling_refuses_what_says_no_calls(value: Any) -> None:
    with pytest.raises(ValueError, match=r"says no calls of functions: give for each call"):
        check_ground_truth(value)


def test_function_calling_refuses_broken_schemas() -> None:
    with pytest.raises(ValueError, match=r"no schema of a function: give objects with name"):
        score("[add(a=1)]", [{"add": {"a": [1]}}], {"function": [{"title": "add"}]})
