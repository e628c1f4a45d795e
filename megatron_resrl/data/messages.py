"""Chat messages and tools out of a question's columns."""

from __future__ import annotations

from typing import Any

from megatron_resrl.data.rows import check_text, is_blank, kind_in_words, parsed, shortened
from megatron_resrl.errors import InputError

_TEXT_PARTS = (None, "text", "input_text")
_PLACEHOLDERS = {"<image>": ("images", "image"), "<video>": ("videos", "video")}
"""Marks in a text, and the columns with what belongs there."""


def read_messages(prompt: Any, row: dict[str, Any], where: str) -> list[dict[str, Any]] | None:
    """The messages of a prompt.

    Args:
        prompt: A text, which becomes a user message, or a list of chat messages; the list may be
            JSON text. A message's content is a text, or a list of parts of type text, which are
            joined; an assistant's message with `tool_calls` needs none.
        row: All columns, to notice pictures.
        where: For messages.

    Returns:
        The messages; None if the prompt is empty.

    Raises:
        InputError: It is something else, or holds text that is not Unicode.
    """
    if is_blank(prompt):
        return None
    messages = parsed(prompt)
    if isinstance(prompt, str) and not _is_chat(messages):
        messages = [{"role": "user", "content": prompt}]
    if not _is_chat(messages):
        raise InputError(
            f"{where}: it is a {kind_in_words(prompt)}, {shortened(prompt)}; give a text, or a "
            "list of messages, each with the texts role and content"
        )
    messages = [
        _message(message, f"{where}, message {number}") for number, message in enumerate(messages)
    ]
    check_text(messages, where)
    _check_pictures(messages, row, where)
    asked = [message for message in messages if message["role"] not in ("system", "developer")]
    if all(_is_empty(message) for message in asked or messages):
        return None
    return messages


def read_tools(value: Any, where: str) -> list[dict[str, Any]] | None:
    """The tools of a row, a list of JSON schemas or its JSON text; None if there are none.

    Raises:
        InputError: It is something else.
    """
    if is_blank(value):
        return None
    tools = parsed(value)
    if not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in tools):
        raise InputError(
            f"{where}: it is a {kind_in_words(value)}, {shortened(value)}; give a list of JSON "
            "schemas of functions, or set data.tools_key to null if they are something else"
        )
    check_text(tools, where)
    return [_without_nulls(tool) for tool in tools]


def _is_chat(messages: Any) -> bool:
    return (
        isinstance(messages, list)
        and bool(messages)
        and all(
            isinstance(message, dict)
            and isinstance(message.get("role"), str)
            and (isinstance(message.get("content"), (str, list)) or bool(message.get("tool_calls")))
            for message in messages
        )
    )


def _is_empty(message: dict[str, Any]) -> bool:
    return is_blank(message.get("content")) and not message.get("tool_calls")


def _message(message: dict[str, Any], where: str) -> dict[str, Any]:
    # Parquet gives every message every field that any message has.
    plain = {name: value for name, value in message.items() if value is not None}
    if "content" in message:
        # Templates tell a message with calls alone by its content of null.
        plain["content"] = _joined(message["content"], where)
    if calls := plain.get("tool_calls"):
        plain["tool_calls"] = _calls(calls, where)
    return plain


def _joined(content: Any, where: str) -> str | None:
    """The text of a message's content."""
    if not isinstance(content, list):
        return content
    texts = []
    for number, part in enumerate(content):
        part = {"text": part} if isinstance(part, str) else part
        if not isinstance(part, dict):
            raise InputError(
                f"{where}: part {number} of its content is a {kind_in_words(part)}, "
                f'{shortened(part)}; give parts like {{"type": "text", "text": "..."}}'
            )
        if part.get("type") not in _TEXT_PARTS or not isinstance(part.get("text"), str):
            raise InputError(
                f"{where}: part {number} of its content is of type {part.get('type')!r}, and the "
                "policy reads text only; leave the row out or describe the part in words"
            )
        texts.append(part["text"])
    return "".join(texts)


def _calls(calls: Any, where: str) -> list[dict[str, Any]]:
    """Tool calls as chat templates want them: arguments as objects, not as their JSON text."""
    calls = parsed(calls)
    if not isinstance(calls, list) or not all(isinstance(call, dict) for call in calls):
        raise InputError(f"{where}: its tool_calls are {shortened(calls)}; give a list of objects")
    read = []
    for call in map(_without_nulls, calls):
        function = call.get("function", call)
        if isinstance(function, dict) and "arguments" in function:
            function = function | {"arguments": parsed(function["arguments"])}
            call = call | {"function": function} if "function" in call else function
        read.append(call)
    return read


def _without_nulls(value: Any) -> Any:
    """Without the fields that only other rows of the column have."""
    if isinstance(value, dict):
        return {name: _without_nulls(item) for name, item in value.items() if item is not None}
    return [_without_nulls(item) for item in value] if isinstance(value, list) else value


def _check_pictures(messages: list[dict[str, Any]], row: dict[str, Any], where: str) -> None:
    for mark, names in _PLACEHOLDERS.items():
        if not any(mark in (message.get("content") or "") for message in messages):
            continue
        for name in names:
            if not is_blank(row.get(name)):
                raise InputError(
                    f"{where}: {mark} stands for what is in the column {name!r}, and the policy "
                    "reads text only; leave the row out"
                )
