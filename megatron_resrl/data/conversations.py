"""Conversations out of files of rows, in the layouts of OpenAI, Hugging Face and ShareGPT."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from megatron_resrl.config.problems import Problem
from megatron_resrl.config.schema_questions import FileEntry
from megatron_resrl.config.schema_sft import SftDataConfig
from megatron_resrl.data.file_entries import resolve_entries
from megatron_resrl.data.messages import read_messages, read_tools
from megatron_resrl.data.records import PromptRecord
from megatron_resrl.data.rows import (
    ABSENT,
    columns,
    find,
    first_found,
    is_blank,
    kind_in_words,
    parsed,
    read_rows,
    shortened,
)
from megatron_resrl.errors import InputError

DEFAULT_MESSAGES_KEYS = ("messages", "conversations")
DEFAULT_PROMPT_KEYS = ("prompt", "question", "instruction")
DEFAULT_RESPONSE_KEYS = ("response", "completion", "answer", "output")
"""Tried in these orders where a file's keys are not set."""
PROMPT_IDS, RESPONSE_IDS = "prompt_token_ids", "response_token_ids"
"""Columns with a sample's exact tokens, as vLLM names them."""
RESPONSE_MASK = "response_mask"
"""Column that says which tokens of such a response the model wrote, where it did not write all."""

_KEYS = ("messages_key", "prompt_key", "response_key", "system_prompt", "tools_key")
_SHAREGPT_ROLES = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "system": "system",
    "tool": "tool",
    "observation": "tool",
}
"""What ShareGPT's `from` says -> the role of a message."""


@dataclass(frozen=True)
class ConversationFile:
    """One file of conversations, and how to read it."""

    path: str
    name: str
    """In the metrics of an evaluation."""
    messages_key: str | None = None
    """Column of the conversation; None: the first of `DEFAULT_MESSAGES_KEYS` that a row has."""
    prompt_key: str | None = None
    """Column of the question, where a row is no conversation; None: the first of the defaults."""
    response_key: str | None = None
    """Column of its answer; None: the first of the defaults."""
    system_prompt: str | None = None
    """Put before the messages of every conversation that does not begin with one."""
    tools_key: str | None = "tools"
    """Column with tools; None: none are shown."""


class ExactTokens(NamedTuple):
    """A prompt and a response as a model read and wrote them."""

    prompt: tuple[int, ...]
    response: tuple[int, ...]
    response_mask: tuple[bool, ...]
    """Whether the model wrote each token of the response."""


@dataclass(frozen=True)
class Conversation:
    """One row: messages, or the exact tokens of a prompt and a response."""

    record: PromptRecord
    """Messages, tools and place."""
    learned: tuple[int, ...] = ()
    """Indices of the assistant's messages that are learned."""
    token_ids: ExactTokens | None = None
    """Where the row has `PROMPT_IDS` and `RESPONSE_IDS`; None: messages."""


def conversation_files(
    setting: str, entries: Sequence[FileEntry], data: SftDataConfig
) -> tuple[list[ConversationFile], list[Problem]]:
    """The files that a setting names, and what is wrong with its entries."""
    defaults = {key: getattr(data, key) for key in _KEYS}
    return resolve_entries(
        setting, entries, ConversationFile, defaults, example="messages_key: COLUMN"
    )


def read_conversations(file: ConversationFile, limit: int | None = None) -> Iterator[Conversation]:
    """Yields the conversations of a file, in its order.

    Args:
        file: Where it is, and how its rows are read.
        limit: Read no more rows than that.

    Raises:
        InputError: The file or a row (its line, item or row is named) cannot be used: it has no
            conversation, an unknown role, or no assistant's message to learn.
    """
    for index, (where, row) in enumerate(conversation_rows(file, limit)):
        yield conversation_of(file, index, where, row)


def conversation_rows(
    file: ConversationFile, limit: int | None = None
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields the place and the columns of each row of a file.

    Raises:
        InputError: The file cannot be read, or has no row.
    """
    empty = True
    for each in itertools.islice(read_rows(Path(file.path)), limit):
        empty = False
        yield each
    if empty:
        raise InputError(f"{file.path}: it is empty; give a file with at least one conversation")


def conversation_of(
    file: ConversationFile, index: int, where: str, row: dict[str, Any]
) -> Conversation:
    """The conversation of a row.

    Args:
        file: Which columns it is in.
        index: Of the row in its file.
        where: The row's place, for messages.
        row: Its columns.

    Raises:
        InputError: See `read_conversations`.
    """
    if (token_ids := _token_ids(row, where)) is not None:
        record = PromptRecord(index, [], None, file.name, {}, place=where)
        return Conversation(record, token_ids=token_ids)
    messages = _messages(file, where, row)
    if file.system_prompt is not None and messages[0]["role"] != "system":
        messages = [{"role": "system", "content": file.system_prompt}, *messages]
    tools = find(row, file.tools_key) if file.tools_key else ABSENT
    shown = None if tools is ABSENT else read_tools(tools, f"{where}, {file.tools_key}")
    speaking = [n for n, message in enumerate(messages) if message["role"] == "assistant"]
    if not speaking:
        roles = ", ".join(message["role"] for message in messages)
        raise InputError(
            f"{where}: no message is the assistant's (roles are {roles}), so that there is nothing "
            "to learn; leave the row out"
        )
    # OpenAI's fine-tuning format: an assistant's message of weight 0 is context only.
    learned = tuple(n for n in speaking if messages[n].pop("weight", 1) != 0)
    if not learned:
        raise InputError(
            f"{where}: every message of the assistant's has weight 0, so that there is nothing to "
            "learn; leave the row out"
        )
    record = PromptRecord(index, messages, None, file.name, {}, tools=shown, place=where)
    return Conversation(record, learned)


def _messages(file: ConversationFile, where: str, row: dict[str, Any]) -> list[dict[str, Any]]:
    keys = DEFAULT_MESSAGES_KEYS if file.messages_key is None else (file.messages_key,)
    if file.prompt_key is None or file.messages_key is not None:
        key, value = first_found(row, keys)
        if value is not ABSENT:
            place = f"{where}, {key}"
            messages = read_messages(_with_roles(value, place), row, place)
            if messages is None:
                raise InputError(f"{place}: the conversation is empty; leave the row out")
            return messages
    asked = DEFAULT_PROMPT_KEYS if file.prompt_key is None else (file.prompt_key,)
    answered = DEFAULT_RESPONSE_KEYS if file.response_key is None else (file.response_key,)
    prompt_key, prompt = first_found(row, asked)
    response_key, response = first_found(row, answered)
    if prompt is ABSENT or response is ABSENT:
        raise InputError(
            f"{where}: there is no column {' or '.join(map(repr, keys))} with a conversation "
            f"(data.messages_key), nor {' or '.join(map(repr, asked))} (data.prompt_key) with "
            f"{' or '.join(map(repr, answered))} (data.response_key); it has {columns(row)}"
        )
    question = read_messages(prompt, row, f"{where}, {prompt_key}")
    answer = _answer(response, row, f"{where}, {response_key}")
    if question is None or answer is None:
        empty = prompt_key if question is None else response_key
        raise InputError(f"{where}, {empty}: it is empty; leave the row out")
    return [*question, *answer]


def _answer(response: Any, row: dict[str, Any], where: str) -> list[dict[str, Any]] | None:
    """A text is the assistant's message; messages, as TRL's `completion` has them, stay."""
    if is_blank(response):
        return None
    if isinstance(parsed(response), list):
        return read_messages(response, row, where)
    if not isinstance(response, str):
        raise InputError(
            f"{where}: it is a {kind_in_words(response)}, {shortened(response)}; give a text, or "
            "a list of messages"
        )
    return [{"role": "assistant", "content": response}]


def _with_roles(value: Any, where: str) -> Any:
    """ShareGPT's messages, with `from` and `value`, as messages with role and content."""
    messages = parsed(value)
    if not isinstance(messages, list):
        return value
    return [
        _from_sharegpt(message, f"{where}, message {number}")
        if isinstance(message, dict) and "from" in message and "role" not in message
        else message
        for number, message in enumerate(messages)
    ]


def _from_sharegpt(message: dict[str, Any], where: str) -> dict[str, Any]:
    spoken = message["from"]
    if spoken not in _SHAREGPT_ROLES:
        raise InputError(
            f"{where}: its `from` is {spoken!r}; known are {', '.join(_SHAREGPT_ROLES)}"
        )
    rest = {key: item for key, item in message.items() if key not in ("from", "value")}
    return rest | {"role": _SHAREGPT_ROLES[spoken], "content": message.get("value")}


def _token_ids(row: dict[str, Any], where: str) -> ExactTokens | None:
    """The exact tokens of a row; None: it has none."""
    if PROMPT_IDS not in row or RESPONSE_IDS not in row:
        return None
    prompt, response = (_ids(row[key], f"{where}, {key}") for key in (PROMPT_IDS, RESPONSE_IDS))
    mask = row.get(RESPONSE_MASK)
    if mask is None:
        return ExactTokens(prompt, response, (True,) * len(response))
    if not isinstance(mask, list) or len(mask) != len(response) or not any(mask):
        raise InputError(
            f"{where}, {RESPONSE_MASK}: it is {shortened(mask)}; give a truth value for each of "
            f"the response's {len(response)} tokens, at least one of them true"
        )
    return ExactTokens(prompt, response, tuple(map(bool, mask)))


def _ids(value: Any, where: str) -> tuple[int, ...]:
    whole = isinstance(value, list) and all(type(each) is int and each >= 0 for each in value)
    if not whole or not value:
        raise InputError(f"{where}: it is {shortened(value)}; give a list of at least one token id")
    return tuple(value)
