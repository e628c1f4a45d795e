"""Questions from .jsonl and .parquet files, and their token ids."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import pyarrow
import pyarrow.parquet

from megatron_resrl.errors import InputError

logger = logging.getLogger(__name__)

DEFAULT_ANSWER_KEYS = ("reward_model.ground_truth", "answer", "ground_truth")
"""Tried in this order where `data.answer_key` is not set."""

_SHOWN_CHARACTERS = 60
"""Of a value in an error message."""


@dataclass(frozen=True)
class PromptRecord:
    """One question as it stands in its file."""

    index: int
    """Position in the file, from 0."""
    messages: list[dict[str, Any]]
    """Chat messages, each with the texts `role` and `content`."""
    ground_truth: Any
    """What the reward function compares with."""
    data_source: str
    """Name of the dataset."""
    extra: dict[str, Any]
    """The other columns."""


@dataclass(frozen=True)
class Prompt:
    """A question as the model reads it."""

    record: PromptRecord
    token_ids: tuple[int, ...]


@dataclass(frozen=True)
class TokenizedPrompts:
    """The questions of a file that are short enough, and which are not."""

    prompts: list[Prompt]
    dropped: list[int]
    """`PromptRecord.index` of the questions that were too long."""


def load_prompts(
    path: str | Path,
    *,
    prompt_key: str = "prompt",
    answer_key: str | None = None,
    answer_pattern: str | None = None,
    system_prompt: str | None = None,
    data_source: str | None = None,
) -> list[PromptRecord]:
    """Reads a file of questions. Reports and drops those whose answer is empty.

    Keys are column names; `a.b` is field b of column a. Nested columns may be structs or JSON
    text.

    Args:
        path: .jsonl (one object per line, blank lines are skipped) or .parquet.
        prompt_key: A text, which becomes a user message, or a list of chat messages.
        answer_key: The ground truth; None: the first of `DEFAULT_ANSWER_KEYS` that a row has.
        answer_pattern: Regular expression with one group: the part of the answer's text that is
            the ground truth. None: all of it.
        system_prompt: Put before the messages of every prompt that does not begin with one.
        data_source: Name of the dataset; None: the row's `data_source`, otherwise the file's name.

    Returns:
        At least one record, in the file's order.

    Raises:
        InputError: The file, a row (its line or, in .parquet, its number from 0 is named) or the
            answer pattern cannot be used.
    """
    path = Path(path)
    pattern = _compiled(answer_pattern)
    records: list[PromptRecord] = []
    unanswered: list[str] = []
    for index, (where, row) in enumerate(_read_rows(path)):
        messages = _messages(_prompt(row, prompt_key, where), f"{where}, {prompt_key}")
        if system_prompt is not None and messages[0]["role"] != "system":
            messages = [{"role": "system", "content": system_prompt}, *messages]
        key, answer = _answer(row, answer_key, where)
        if _is_blank(answer):
            unanswered.append(f"{where}, {key}")
            continue
        own_source = row.get("data_source")
        records.append(
            PromptRecord(
                index=index,
                messages=messages,
                ground_truth=_cut(answer, pattern, f"{where}, {key}"),
                data_source=data_source or (own_source and str(own_source)) or path.stem,
                extra={k: v for k, v in row.items() if k not in (prompt_key, "data_source")},
            )
        )
    if not records:
        problem = f"all answers are empty, from {unanswered[0]} on" if unanswered else "it is empty"
        raise InputError(f"{path}: {problem}; give a file with at least one answered question")
    if unanswered:
        report = "%d questions have an empty answer and are dropped, the first: %s"
        logger.warning(report, len(unanswered), unanswered[0])
    return records


def tokenize_prompts(
    records: Sequence[PromptRecord],
    tokenizer: Any,
    *,
    max_prompt_length: int,
    apply_chat_template: bool = True,
    chat_template_kwargs: dict[str, Any] | None = None,
) -> TokenizedPrompts:
    """Turns questions into what the model reads. Reports and drops those that are too long.

    Args:
        records: Of one file.
        tokenizer: A Hugging Face tokenizer.
        max_prompt_length: The largest number of tokens.
        apply_chat_template: Format the messages with the tokenizer's chat template, up to where
            the assistant begins. False: take each prompt's text as it is, with the special
            tokens that the tokenizer adds to a text.
        chat_template_kwargs: Passed to the template.

    Returns:
        The prompts in order, and the indices of those dropped.

    Raises:
        InputError: The tokenizer has no chat template or it refuses a prompt; a prompt has
            several messages where no template is to be applied, or no tokens; none is left.
    """
    if apply_chat_template:
        texts = _render(records, tokenizer, chat_template_kwargs or {})
    else:
        texts = [_plain_text(record) for record in records]
    # A template writes the special tokens itself.
    encoded = tokenizer(texts, add_special_tokens=not apply_chat_template) if texts else {}
    prompts, dropped, longest = [], [], 0
    for record, ids in zip(records, encoded.get("input_ids", ()), strict=True):
        if not ids:
            raise InputError(f"prompt {record.index} of {record.data_source} has no tokens")
        longest = max(longest, len(ids))
        if len(ids) > max_prompt_length:
            dropped.append(record.index)
        else:
            prompts.append(Prompt(record, tuple(ids)))
    if dropped:
        report = (
            f"{len(dropped)} of {len(records)} prompts are longer than "
            f"data.max_prompt_length = {max_prompt_length} tokens; the longest has {longest}"
        )
        if not prompts:
            raise InputError(f"{report}: nothing is left, raise the limit")
        logger.warning("%s: they are dropped", report)
    return TokenizedPrompts(prompts, dropped)


def _read_rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields the rows of a file, each with where it stands."""
    if not path.is_file():
        raise InputError(f"there is no file {path}; relative paths start from {Path.cwd()}")
    if path.suffix == ".jsonl":
        yield from _read_jsonl(path)
    elif path.suffix == ".parquet":
        yield from _read_parquet(path)
    else:
        raise InputError(
            f"{path}: unknown kind of file {path.suffix!r}; give a .jsonl or .parquet file"
        )


def _read_jsonl(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            where = f"{path}, line {number}"
            try:
                text = line.decode("utf-8-sig").rstrip()
            except UnicodeDecodeError as error:
                raise InputError(f"{where}: it is not UTF-8 ({error})") from None
            if not text:
                continue
            try:
                row = json.loads(text)
            except json.JSONDecodeError as error:
                near = text[max(0, error.pos - 30) : error.pos + 30]
                raise InputError(
                    f"{where}: it is not JSON, {error.msg} at column {error.colno}, near {near!r}"
                ) from None
            if not isinstance(row, dict):
                raise InputError(
                    f"{where}: it is a {_kind(row)}; give one object per line, "
                    'e.g. {"prompt": "...", "answer": "..."}'
                )
            yield where, row


def _read_parquet(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            number = 0
            for batch in file.iter_batches():
                for row in batch.to_pylist():
                    yield f"{path}, row {number}", row
                    number += 1
    except pyarrow.ArrowException as error:
        raise InputError(f"{path} is not a readable parquet file: {error}") from error


_ABSENT = object()


def _find(row: dict[str, Any], key: str) -> Any:
    """Looks a dotted key up, or returns `_ABSENT`."""
    if key in row:
        return row[key]
    value: Any = row
    for name in key.split("."):
        value = _parsed(value)
        if not isinstance(value, dict) or name not in value:
            return _ABSENT
        value = value[name]
    return value


def _parsed(value: Any) -> Any:
    """Objects and lists that are JSON text; anything else as it is."""
    if isinstance(value, str) and value.lstrip().startswith(("{", "[")):
        try:
            return json.loads(value)
        except json.JSONDecodeError:
            return value  # It is text that only begins like JSON.
    return value


def _columns(row: dict[str, Any]) -> str:
    """All keys that `_find` would find."""
    names = []
    for name, value in row.items():
        inner = _parsed(value)
        names += [f"{name}.{key}" for key in inner] if isinstance(inner, dict) else [name]
    return ", ".join(names)


def _prompt(row: dict[str, Any], key: str, where: str) -> Any:
    prompt = _find(row, key)
    if prompt is _ABSENT:
        raise InputError(
            f"{where}: there is no column {key!r} (data.prompt_key); it has {_columns(row)}"
        )
    return prompt


def _messages(prompt: Any, where: str) -> list[dict[str, Any]]:
    messages = _parsed(prompt)
    if isinstance(prompt, str) and not _is_chat(messages):
        messages = [{"role": "user", "content": prompt}]
    if not _is_chat(messages):
        raise InputError(
            f"{where}: it is a {_kind(prompt)}, {_shortened(prompt)}; give a text, or a list of "
            "messages, each with the texts role and content"
        )
    if not any(message["content"].strip() for message in messages):
        raise InputError(f"{where}: it is empty")
    # Parquet gives every message every field that any message has.
    return [{k: v for k, v in message.items() if v is not None} for message in messages]


def _is_chat(messages: Any) -> bool:
    return (
        isinstance(messages, list)
        and bool(messages)
        and all(isinstance(message, dict) for message in messages)
        and all(
            isinstance(message.get(field), str)
            for message in messages
            for field in ("role", "content")
        )
    )


def _answer(row: dict[str, Any], answer_key: str | None, where: str) -> tuple[str, Any]:
    """The first key that has an answer, otherwise the first that there is, and its value."""
    keys = DEFAULT_ANSWER_KEYS if answer_key is None else (answer_key,)
    found = {key: value for key in keys if (value := _find(row, key)) is not _ABSENT}
    for key, answer in found.items():
        if not _is_blank(answer):
            return key, answer
    if found:
        return next(iter(found.items()))
    raise InputError(
        f"{where}: there is no answer column (data.answer_key: {' or '.join(keys)}); "
        f"it has {_columns(row)}"
    )


def _is_blank(answer: Any) -> bool:
    return answer is None or (isinstance(answer, str) and not answer.strip())


def _compiled(answer_pattern: str | None) -> re.Pattern[str] | None:
    if answer_pattern is None:
        return None
    try:
        pattern = re.compile(answer_pattern)
    except re.error as error:
        raise InputError(
            f"data.answer_pattern = {answer_pattern!r} is not a regular expression: {error}"
        ) from None
    if pattern.groups != 1:
        raise InputError(
            f"data.answer_pattern = {answer_pattern!r} has {pattern.groups} groups; give it one "
            "pair of parentheses, around the answer"
        )
    return pattern


def _cut(answer: Any, pattern: re.Pattern[str] | None, where: str) -> Any:
    if pattern is None:
        return answer
    if isinstance(answer, (dict, list)):
        raise InputError(
            f"{where}: it is a {_kind(answer)}, and data.answer_pattern needs a text; name the "
            "field in data.answer_key"
        )
    found = pattern.search(str(answer))
    if found is None or not found[1]:
        raise InputError(
            f"{where}: data.answer_pattern = {pattern.pattern!r} finds nothing in "
            f"{_shortened(answer)}"
        )
    return found[1].strip()


def _render(
    records: Sequence[PromptRecord], tokenizer: Any, chat_template_kwargs: dict[str, Any]
) -> list[str]:
    if not tokenizer.chat_template:
        raise InputError(
            f"the tokenizer of {tokenizer.name_or_path!r} has no chat template: use the tokenizer "
            "of an instruct model (model.tokenizer_path), or set data.apply_chat_template to false"
        )
    ours = {"tokenize": False, "add_generation_prompt": True}
    if taken := ours.keys() & chat_template_kwargs:
        raise InputError(f"data.chat_template_kwargs: {', '.join(sorted(taken))} cannot be set")
    texts = []
    for record in records:
        try:
            text = tokenizer.apply_chat_template(record.messages, **ours, **chat_template_kwargs)
        except jinja2.TemplateError as error:
            raise InputError(
                f"the chat template of {tokenizer.name_or_path!r} refuses prompt {record.index} "
                f"of {record.data_source}, with roles "
                f"{', '.join(message['role'] for message in record.messages)}: {error}"
            ) from error
        texts.append(text)
    return texts


def _plain_text(record: PromptRecord) -> str:
    if len(record.messages) > 1:
        raise InputError(
            f"prompt {record.index} of {record.data_source} has {len(record.messages)} messages, "
            "which only a chat template can join: set data.apply_chat_template to true, or give "
            "single texts and no data.system_prompt"
        )
    return record.messages[0]["content"]


def _kind(value: Any) -> str:
    names = {dict: "JSON object", list: "list", str: "text", bool: "truth value"}
    return "null" if value is None else names.get(type(value), type(value).__name__)


def _shortened(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= _SHOWN_CHARACTERS else f"{text[:_SHOWN_CHARACTERS]}..."
