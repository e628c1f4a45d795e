"""Prompt files -> chat messages and ground truths -> token ids."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

_ANSWER_KEYS = ("reward_model.ground_truth", "answer", "ground_truth")
_EXCERPT = 120


class DataError(ValueError):
    """A prompt file cannot be used; the message names the file and the place in it."""


@dataclass(frozen=True)
class PromptRecord:
    """One row of a prompt file."""

    index: int
    """Row in the file, from 0."""
    messages: list[dict[str, str]]
    """Chat messages with `role` and `content`."""
    ground_truth: Any
    data_source: str
    extra: dict[str, Any] = field(default_factory=dict)
    """The row's other columns, for reward functions."""


@dataclass(frozen=True)
class Prompt:
    """A record as the policy reads it."""

    record: PromptRecord
    token_ids: tuple[int, ...]


@dataclass(frozen=True)
class TokenizedPrompts:
    """Prompts within the length limit, and the rows that were not."""

    prompts: list[Prompt]
    dropped: list[int]
    """Row indices of records that are too long."""


def load_prompts(
    path: str | Path,
    *,
    prompt_key: str = "prompt",
    answer_key: str | None = None,
    answer_pattern: str | None = None,
    system_prompt: str | None = None,
) -> list[PromptRecord]:
    """Reads a .jsonl or .parquet file.

    Nested columns may be structures or JSON strings. `data_source` defaults to the file's name.

    Args:
        path: The file.
        prompt_key: Column of the prompt, a string or a list of chat messages.
        answer_key: Column of the ground truth, dotted for nested ones; default: the first present
            of reward_model.ground_truth, answer and ground_truth.
        answer_pattern: Regular expression whose one group is the answer in that column.
        system_prompt: Put before prompts that have no system message.

    Raises:
        DataError: Missing or empty file, malformed line, missing column, wrong type.
    """
    path = Path(path)
    pattern = re.compile(answer_pattern) if answer_pattern else None
    records = []
    for index, (place, row) in enumerate(_rows(path)):
        where = f"{path}, {place}"
        answer = _answer(row, answer_key, where)
        records.append(
            PromptRecord(
                index=index,
                messages=_messages(row, prompt_key, system_prompt, where),
                ground_truth=_cut_out(answer, pattern, where),
                data_source=str(row.get("data_source") or path.stem),
                extra={name: value for name, value in row.items() if name != prompt_key},
            )
        )
    if not records:
        raise DataError(f"{path} holds no prompts; a prompt file needs at least one row")
    return records


def tokenize_prompts(
    records: Sequence[PromptRecord],
    tokenizer: Any,
    *,
    max_prompt_length: int,
    apply_chat_template: bool = True,
    chat_template_kwargs: dict[str, Any] | None = None,
) -> TokenizedPrompts:
    """Formats and tokenizes records, leaving out those that are too long.

    Args:
        records: From `load_prompts`.
        tokenizer: A Hugging Face tokenizer.
        max_prompt_length: In tokens, the chat template's included.
        apply_chat_template: Use the tokenizer's template; otherwise the text as it is.
        chat_template_kwargs: Passed to the template.

    Raises:
        DataError: No chat template, or every record is too long.
    """
    if apply_chat_template and not getattr(tokenizer, "chat_template", None):
        raise DataError(
            f"the tokenizer in {tokenizer.name_or_path!r} has no chat template; give one that "
            "has (model.tokenizer_path), or set data.apply_chat_template to false"
        )
    prompts, dropped, longest = [], [], 0
    for record in records:
        if apply_chat_template:
            text = tokenizer.apply_chat_template(
                record.messages,
                tokenize=False,
                add_generation_prompt=True,
                **(chat_template_kwargs or {}),
            )
            token_ids = tokenizer(text, add_special_tokens=False).input_ids
        else:
            token_ids = tokenizer("\n".join(m["content"] for m in record.messages)).input_ids
        if len(token_ids) > max_prompt_length:
            dropped.append(record.index)
            longest = max(longest, len(token_ids))
        else:
            prompts.append(Prompt(record, tuple(token_ids)))
    if not prompts:
        raise DataError(
            f"all {len(records)} prompts are longer than data.max_prompt_length="
            f"{max_prompt_length} tokens (longest: {longest})"
        )
    return TokenizedPrompts(prompts, dropped)


def _rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Place ("line 3", "row 3") and content of every row."""
    if not path.is_file():
        raise DataError(f"there is no prompt file {path}")
    if path.suffix == ".jsonl":
        yield from _jsonl_rows(path)
    elif path.suffix == ".parquet":
        import pyarrow.parquet

        try:
            rows = pyarrow.parquet.read_table(path).to_pylist()
        except (pyarrow.ArrowInvalid, OSError) as error:
            raise DataError(f"{path} is no readable parquet file: {error}") from error
        yield from ((f"row {number}", row) for number, row in enumerate(rows))
    else:
        raise DataError(f"{path}: prompt files end in .jsonl or .parquet, not {path.suffix!r}")


def _jsonl_rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                start = max(0, error.colno - _EXCERPT // 2)
                around = line[start : start + _EXCERPT].strip()
                raise DataError(
                    f"{path}, line {number}, column {error.colno}: {error.msg}, near {around!r}"
                ) from error
            if not isinstance(row, dict):
                raise DataError(f"{path}, line {number}: not a JSON object but {line.strip()!r:.80}")
            yield f"line {number}", row


def _parsed(value: Any) -> Any:
    """A nested field that is stored as a JSON string, parsed; anything else as it is."""
    if isinstance(value, str) and value[:1] in ("{", "["):
        try:
            return json.loads(value)
        except json.JSONDecodeError:
            return value
    return value


def _lookup(row: dict[str, Any], dotted: str) -> Any:
    """The value under a dotted name; None if a part is missing."""
    value: Any = row
    for name in dotted.split("."):
        value = _parsed(value)
        if not isinstance(value, dict) or name not in value:
            return None
        value = value[name]
    return value


def _answer(row: dict[str, Any], answer_key: str | None, where: str) -> Any:
    keys = (answer_key,) if answer_key else _ANSWER_KEYS
    for key in keys:
        found = _lookup(row, key)
        if found is not None:
            return found
    raise DataError(
        f"{where}: no answer under {' or '.join(keys)}; the columns are {', '.join(row)}; "
        "name the right one in data.answer_key"
    )


def _cut_out(answer: Any, pattern: re.Pattern[str] | None, where: str) -> Any:
    if pattern is None:
        return answer
    found = pattern.search(str(answer))
    if found is None or pattern.groups != 1:
        raise DataError(
            f"{where}: data.answer_pattern {pattern.pattern!r} must have one group and match "
            f"the answer {str(answer)[-_EXCERPT:]!r}"
        )
    return found.group(1)


def _messages(
    row: dict[str, Any], prompt_key: str, system_prompt: str | None, where: str
) -> list[dict[str, str]]:
    value = row.get(prompt_key)
    if value is None:
        raise DataError(
            f"{where}: no prompt under {prompt_key!r}; the columns are {', '.join(row)}; "
            "name the right one in data.prompt_key"
        )
    chat = value if isinstance(value, list) else _parsed(value)
    if isinstance(chat, list) and all(
        isinstance(message, dict) and {"role", "content"} <= message.keys() for message in chat
    ):
        messages = [{"role": m["role"], "content": m["content"]} for m in chat]
    elif isinstance(value, str):
        messages = [{"role": "user", "content": value}]
    else:
        raise DataError(
            f"{where}: {prompt_key!r} must be a string or a list of messages with role and "
            f"content, not {value!r:.80}"
        )
    if not messages:
        raise DataError(f"{where}: {prompt_key!r} holds no message")
    if system_prompt is not None and messages[0]["role"] != "system":
        messages = [{"role": "system", "content": system_prompt}, *messages]
    return messages
