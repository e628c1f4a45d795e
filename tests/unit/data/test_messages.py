"""Chat messages with parts, tool calls and tools, from both kinds of file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from questions import load_prompts

from megatron_resrl.data.messages import read_messages, read_tools
from megatron_resrl.errors import InputError

USER = {"role": "user", "content": "weather in Paris?"}
CALL = {"type": "function", "function": {"name": "weather", "arguments": {"city": "Paris"}}}
CALLING = {"role": "assistant", "content": None, "tool_calls": [CALL]}
RESULT = {"role": "tool", "content": "rain"}
TOOL = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "Tells the weather.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    },
}


def part(text: str) -> dict[str, str]:
    return {"type": "text", "text": text}


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ([part("1+1?")], "1+1?"),
        ([part("1"), part("+1?")], "1+1?"),
        ([{"type": "input_text", "text": "1+1?"}], "1+1?"),
        ([{"text": "1+1?"}], "1+1?"),
        (["1+", "1?"], "1+1?"),
        # Parquet gives every part every field that any part has.
        ([part("1+1?") | {"image_url": None}], "1+1?"),
    ],
)
def test_messages_join_parts_of_type_text(content: list[Any], text: str) -> None:
    prompt = [{"role": "user", "content": content}]
    for given in (prompt, json.dumps(prompt)):
        assert read_messages(given, {}, "here") == [{"role": "user", "content": text}]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (
            [part("what?"), {"type": "image_url", "image_url": {"url": "a.png"}}],
            "here, message 0: part 1 of its content is of type 'image_url', and the policy reads "
            "text only",
        ),
        ([{"type": "image"}], "part 0 of its content is of type 'image'"),
        ([{"type": "text", "text": None}], "part 0 of its content is of type 'text'"),
        ([3], "part 0 of its content is a int, 3"),
    ],
)
def test_messages_name_other_parts(content: list[Any], said: str) -> None:
    with pytest.raises(InputError) as caught:
        read_messages([{"role": "user", "content": content}], {}, "here")
    assert said in str(caught.value)


def test_messages_name_a_picture_beside_the_text() -> None:
    prompt = [{"role": "user", "content": "<image>what?"}]
    with pytest.raises(InputError, match="here: <image> stands for what is in the column 'images'"):
        read_messages(prompt, {"images": [{"bytes": b"png"}]}, "here")
    assert read_messages(prompt, {"images": []}, "here") == prompt


@pytest.mark.parametrize("arguments", [{"city": "Paris"}, '{"city": "Paris"}'])
@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_messages_read_calls_and_tools_from_both_kinds_of_file(
    tmp_path: Path, kind: str, arguments: Any
) -> None:
    calling = {
        **CALLING,
        "tool_calls": [{**CALL, "function": {"name": "weather", "arguments": arguments}}],
    }
    row = {"prompt": [USER, calling, RESULT], "tools": [TOOL], "answer": "rain"}
    path = tmp_path / f"a.{kind}"
    if kind == "jsonl":
        path.write_text(json.dumps(row) + "\n")
    else:
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist([row]), path)
    (record,) = load_prompts(path)
    assert record.messages == [USER, CALLING, RESULT]
    assert record.tools == [TOOL]
    assert load_prompts(path, tools_key=None)[0].tools is None


def test_messages_read_tools_from_json_text_or_lack_them(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    rows = [{"functions": json.dumps([TOOL])}, {"functions": None}, {"functions": []}, {}]
    path.write_text("".join(json.dumps(r | {"prompt": "?", "answer": 1}) + "\n" for r in rows))
    found = [record.tools for record in load_prompts(path, tools_key="functions")]
    assert found == [[TOOL], None, None, None]


def test_messages_drop_parquet_fields_of_other_tools() -> None:
    with_nulls = {"function": {"name": "a", "parameters": {"city": None, "day": {"type": "int"}}}}
    assert read_tools([with_nulls], "here") == [
        {"function": {"name": "a", "parameters": {"day": {"type": "int"}}}}
    ]


@pytest.mark.parametrize("tools", ["calculator", ["calculator"], 3, {"name": "weather"}])
def test_messages_name_tools_that_are_no_schemas(tools: Any) -> None:
    with pytest.raises(InputError, match=r"here: it is a .*; give a list of JSON schemas"):
        read_tools(tools, "here")


@pytest.mark.parametrize("calls", ["weather(Paris)", [3]])
def test_messages_name_calls_that_are_no_objects(calls: Any) -> None:
    with pytest.raises(InputError, match="here, message 1: its tool_calls are "):
        read_messages([USER, {"role": "assistant", "tool_calls": calls}], {}, "here")
