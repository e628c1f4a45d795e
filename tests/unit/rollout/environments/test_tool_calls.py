"""Calls of tools: which tool answers, and what is said to a broken call."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import pytest

from megatron_resrl.rollout.environments.tool_calls import (
    ToolEnvironment,
    shortened,
    text_argument,
)
from megatron_resrl.rollout.environments.tools import Tools


class Echo:
    form = '{"text": "..."}'

    def __init__(self, name: str) -> None:
        self.name = name

    def run(self, arguments: Mapping[str, Any]) -> str:
        return f"{self.name} says {text_argument(arguments, 'text')}"


def call(name: object, arguments: object) -> str:
    return f"<tool_call>{json.dumps({'name': name, 'arguments': arguments})}</tool_call>"


def test_tool_environment_gives_each_call_to_its_tool() -> None:
    environment = ToolEnvironment([Echo("one"), Echo("two")])
    calls = call("two", {"text": "a"}) + " then " + call("one", {"text": "b"})
    observation = environment.step(calls)
    assert observation.text == "two says a\none says b"
    assert not observation.done
    assert observation.score is None


@pytest.mark.parametrize(
    ("action", "said"),
    [
        ('<tool_call>{"name": "one", "arguments": {</tool_call>', "the call is not JSON like"),
        ("<tool_call></tool_call>", "the call is not JSON like"),
        (f"<tool_call>{'[' * 100_000}</tool_call>", "the call is not JSON like"),
        ("<tool_call>[1, 2]</tool_call>", "the tools are one, two"),
        (call("three", {}), "the tools are one, two"),
        (call(["one"], {}), "the tools are one, two"),
        (call("one", "text"), "the call is not like"),
        (call("one", {"txt": "a"}), "the argument text is not a text"),
        (call("one", {"text": 7}), "the argument text is not a text"),
    ],
)
def test_tool_environment_says_what_is_wrong_with_a_call(action: str, said: str) -> None:
    observation = ToolEnvironment([Echo("one"), Echo("two")]).step(action)
    assert observation.text.startswith(f"error: {said}")
    assert not observation.done


def test_tool_environment_takes_an_open_call_for_the_answer() -> None:
    observation = ToolEnvironment([Echo("one")]).step('<tool_call>{"name": "one"}')
    assert observation.done
    assert observation.score is None


def test_shortened_keeps_beginning_and_end() -> None:
    assert shortened("abcdef", 6) == "abcdef"
    assert shortened("abcdefg", 4) == "ab\n[3 characters left out]\nfg"


def test_tools_offers_those_that_are_named() -> None:
    tools = Tools({"calculator": None, "python": {"max_characters": 10}})
    assert tools.step(call("calculator", {"expression": "6*7"})).text == "42"
    refused = tools.step(call("search", {"query": "a"})).text
    assert refused.startswith("error: the tools are calculator, python")


@pytest.mark.parametrize(
    ("tools", "said"),
    [
        ({}, "name some of calculator, python, search"),
        ({"calculater": None}, "did you mean 'calculator'"),
        ({"python": {"max_characters": 0}}, "max_characters is 0; give at least 1"),
    ],
)
def test_tools_refuses_what_is_no_tool(tools: dict, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Tools(tools)
