"""Conversations from rows in the layouts that users have."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from megatron_resrl.data.conversations import Conversation, ConversationFile, read_conversations
from megatron_resrl.errors import InputError

QUESTION = {"role": "user", "content": "1+1?"}
ANSWER = {"role": "assistant", "content": "2"}


def read(tmp_path: Path, *rows: dict[str, Any], **keys: Any) -> list[Conversation]:
    path = tmp_path / "chat.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return list(read_conversations(ConversationFile(str(path), "chat", **keys)))


def refused(tmp_path: Path, row: dict[str, Any], **keys: Any) -> str:
    with pytest.raises(InputError) as caught:
        read(tmp_path, row, **keys)
    return str(caught.value)


LAYOUTS = {
    "messages": {"messages": [QUESTION, ANSWER]},
    "json text": {"messages": json.dumps([QUESTION, ANSWER])},
    "sharegpt": {
        "conversations": [{"from": "human", "value": "1+1?"}, {"from": "gpt", "value": "2"}]
    },
    "prompt and response": {"prompt": "1+1?", "response": "2"},
    "alpaca": {"instruction": "1+1?", "output": "2"},
    "trl": {"prompt": [QUESTION], "completion": [ANSWER]},
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_conversations_of_each_layout_are_the_same(tmp_path, layout):
    (found,) = read(tmp_path, LAYOUTS[layout])
    assert found.record.messages == [QUESTION, ANSWER]
    assert found.learned == (1,)


@pytest.mark.setting("sft:data.messages_key", "sft:data.prompt_key", "sft:data.response_key")
def test_conversations_come_from_the_columns_that_are_named(tmp_path):
    row = {"messages": [ANSWER], "chat": [QUESTION, ANSWER], "q": "3", "a": "4", "answer": "5"}
    (found,) = read(tmp_path, row, messages_key="chat")
    assert found.record.messages == [QUESTION, ANSWER]
    (found,) = read(tmp_path, row, prompt_key="q", response_key="a")
    assert [message["content"] for message in found.record.messages] == ["3", "4"]


@pytest.mark.setting("sft:data.system_prompt")
def test_conversations_get_the_system_prompt_if_they_have_none(tmp_path):
    own = {"role": "system", "content": "mine"}
    rows = [{"messages": [QUESTION, ANSWER]}, {"messages": [own, QUESTION, ANSWER]}]
    found = read(tmp_path, *rows, system_prompt="be brief")
    assert [each.record.messages[0]["content"] for each in found] == ["be brief", "mine"]
    assert [each.learned for each in found] == [(2,), (2,)]


@pytest.mark.setting("sft:data.tools_key")
def test_conversations_have_the_tools_of_their_column(tmp_path):
    row = {"messages": [QUESTION, ANSWER], "functions": [{"name": "add"}]}
    assert read(tmp_path, row)[0].record.tools is None
    assert read(tmp_path, row, tools_key="functions")[0].record.tools == [{"name": "add"}]


def test_conversations_learn_no_message_of_weight_zero(tmp_path):
    messages = [QUESTION, ANSWER | {"weight": 0}, QUESTION, ANSWER | {"weight": 1}]
    (found,) = read(tmp_path, {"messages": messages})
    assert found.learned == (3,)
    assert found.record.messages == [QUESTION, ANSWER, QUESTION, ANSWER]
    said = refused(tmp_path, {"messages": messages[:2]})
    assert "line 1: every message of the assistant's has weight 0" in said


def test_conversations_may_be_exact_tokens(tmp_path):
    row = {"prompt_token_ids": [5, 6], "response_token_ids": [7, 8]}
    masked = row | {"response_mask": [True, False]}
    plain, half = read(tmp_path, row, masked)
    assert plain.token_ids == ((5, 6), (7, 8), (True, True))
    assert half.token_ids == ((5, 6), (7, 8), (True, False))


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"messages": [QUESTION]}, "no message is the assistant's (roles are user)"),
        ({"messages": []}, "the conversation is empty"),
        ({"conversations": [{"from": "robot", "value": "x"}]}, "its `from` is 'robot'; known are"),
        ({"text": "1+1=2"}, "there is no column 'messages' or 'conversations'"),
        ({"prompt": "1+1?", "response": ""}, "response: it is empty; leave the row out"),
        ({"prompt": "1+1?", "response": 2}, "give a text, or a list of messages"),
        ({"prompt_token_ids": [], "response_token_ids": [1]}, "give a list of at least one"),
        ({"prompt_token_ids": [1], "response_token_ids": [-1]}, "give a list of at least one"),
        (
            {"prompt_token_ids": [1], "response_token_ids": [2], "response_mask": [False]},
            "give a truth value for each of the response's 1 tokens",
        ),
    ],
)
def test_conversations_refuse_what_cannot_be_learned(tmp_path, row, said):
    message = refused(tmp_path, row)
    assert "chat.jsonl, line 1" in message
    assert said in message


def test_conversations_of_an_empty_file_are_refused(tmp_path):
    with pytest.raises(InputError, match=r"chat\.jsonl: it is empty"):
        read(tmp_path)
