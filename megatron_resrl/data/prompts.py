"""Questions from files, and their token ids."""

from __future__ import annotations

import itertools
import logging
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from megatron_resrl.config.schema import DataConfig
from megatron_resrl.config.schema_questions import FileEntry
from megatron_resrl.data.chat import ChatRenderer, without_double_beginning
from megatron_resrl.data.file_entries import set_name
from megatron_resrl.data.generated import rows_of
from megatron_resrl.data.messages import read_messages, read_tools
from megatron_resrl.data.question_files import (
    QUESTION,
    QuestionFile,
    pattern_problem,
    question_files,
)
from megatron_resrl.data.records import Prompt, PromptRecord, TokenizedPrompts
from megatron_resrl.data.rows import (
    ABSENT,
    check_text,
    columns,
    find,
    first_found,
    is_blank,
    kind_in_words,
    shortened,
)
from megatron_resrl.errors import InputError, SettingError

logger = logging.getLogger(__name__)

DEFAULT_PROMPT_KEYS = ("prompt", "question", "problem")
"""Tried in this order where `data.prompt_key` is not set."""
DEFAULT_ANSWER_KEYS = ("reward_model.ground_truth", "answer", "ground_truth")
"""Tried in this order where `data.answer_key` is not set."""


def read_prompts(
    files: Sequence[FileEntry | QuestionFile],
    data: DataConfig,
    tokenizer: Any,
    limit: int | None = None,
    *,
    vocab_size: int | None = None,
) -> tuple[list[Prompt], list[int]]:
    """Reads prompt files into token ids.

    Args:
        files: See `question_files`.
        data: Columns where a file does not say them, chat template and length limit.
        tokenizer: The model's.
        limit: Read only the first rows of each file.
        vocab_size: Rows of the model's embedding, see `tokenize_prompts`.

    Returns:
        Prompts in file order, and how many of each file were dropped as too long.
    """
    prompts: list[Prompt] = []
    dropped: list[int] = []
    for file in question_files("data.train_files", files, data):
        records = load_prompts(file, tools_key=data.tools_key, limit=limit)
        tokenized = tokenize_prompts(records, tokenizer, data, vocab_size=vocab_size)
        prompts += tokenized.prompts
        dropped.append(len(tokenized.dropped))
    return prompts, dropped


def load_prompts(
    file: QuestionFile, *, tools_key: str | None = "tools", limit: int | None = None
) -> list[PromptRecord]:
    """Reads a file of questions. Reports and drops those whose prompt or answer is empty.

    See `read_records`, which leaves the report out.
    """
    records, empty = read_records(file, tools_key=tools_key, limit=limit)
    for kind, places in empty.items():
        report = "%d questions have an empty %s and are dropped, the first: %s"
        logger.warning(report, len(places), kind, places[0])
    return records


def read_records(
    file: QuestionFile, *, tools_key: str | None = "tools", limit: int | None = None
) -> tuple[list[PromptRecord], dict[str, list[str]]]:
    """Reads a file of questions and drops those whose prompt or answer is empty.

    Args:
        file: Where it is, and how its rows are read.
        tools_key: See `read_tools`; rows may lack it. None: no tools.
        limit: Read no more rows than that.

    Returns:
        At least one record, in the file's order; and where a `prompt` or `answer` is empty, if any
        is.

    Raises:
        InputError: The file, a row (its line, item or row is named) or the answer pattern cannot
            be used.
    """
    path = Path(file.path)
    pattern = _compiled(file.answer_pattern)
    check_text(file.system_prompt, "data.system_prompt")
    records: list[PromptRecord] = []
    empty: dict[str, list[str]] = {"prompt": [], "answer": []}
    for index, (where, row) in enumerate(itertools.islice(rows_of(file, limit), limit)):
        asked, prompt = _prompt(row, file.prompt_key, where)
        messages = read_messages(prompt, row, f"{where}, {asked}")
        if messages is None:
            empty["prompt"].append(f"{where}, {asked}")
            continue
        if file.prompt_template is not None:
            messages = _templated(messages, file.prompt_template)
        if file.system_prompt is not None and messages[0]["role"] != "system":
            messages = [{"role": "system", "content": file.system_prompt}, *messages]
        key, answer = _answer(row, file.answer_key, where)
        # Some tasks have questions with any right answer and so with none of their own.
        if is_blank(answer) and file.generator is None:
            empty["answer"].append(f"{where}, {key}")
            continue
        check_text(answer, f"{where}, {key}")
        own_source = row.get("data_source")
        source = file.data_source
        if source is None and not is_blank(own_source):
            source = own_source
        check_text(source, f"{where}, data_source")
        records.append(
            PromptRecord(
                index=index,
                messages=messages,
                ground_truth=_cut(answer, pattern, f"{where}, {key}"),
                data_source=set_name(path) if source is None else str(source),
                extra={k: v for k, v in row.items() if k not in (asked, "data_source")},
                tools=_tools(row, tools_key, where) if tools_key else None,
                place=where,
            )
        )
    empty = {kind: places for kind, places in empty.items() if places}
    if not records:
        found = [f"{kind}s are empty, from {places[0]} on" for kind, places in empty.items()]
        problem = f"all {' or '.join(found)}" if found else "it is empty"
        raise InputError(f"{path}: {problem}; give a file with at least one answered question")
    return records, empty


def tokenize_prompts(
    records: Sequence[PromptRecord],
    tokenizer: Any,
    data: DataConfig,
    *,
    vocab_size: int | None = None,
) -> TokenizedPrompts:
    """Turns questions into what the model reads. Reports and drops those that are too long.

    Args:
        records: Of one file.
        tokenizer: A Hugging Face tokenizer.
        data: Length limit and chat template. Without the template each prompt's text is taken as it
            is, with the special tokens that the tokenizer puts before a text, unless they stand
            there already.
        vocab_size: Rows of the model's embedding, which has to know every token; None: any.

    Returns:
        The prompts in order, and the indices of those dropped.

    Raises:
        InputError: The tokenizer has no chat template or it refuses a prompt; a prompt has
            several messages where no template is to be applied, no tokens, or one that the model
            does not have; none is left.
    """
    encoded = encode_prompts(records, tokenizer, data, vocab_size=vocab_size)
    limit = data.max_prompt_length
    prompts, dropped = [], []
    for record, ids in zip(records, encoded, strict=True):
        if len(ids) > limit:
            dropped.append(record.index)
        else:
            prompts.append(Prompt(record, tuple(ids)))
    if dropped:
        report = report_too_long([len(ids) for ids in encoded], limit)
        if not prompts:
            raise InputError(f"{report}: no prompt is left, raise the limit")
        logger.warning("%s: they are dropped", report)
    return TokenizedPrompts(prompts, dropped)


def encode_prompts(
    records: Sequence[PromptRecord],
    tokenizer: Any,
    data: DataConfig,
    *,
    vocab_size: int | None = None,
) -> list[list[int]]:
    """The token ids of questions of any length; see `tokenize_prompts`."""
    if data.apply_chat_template:
        renderer = ChatRenderer(
            tokenizer,
            data.chat_template_kwargs,
            continue_final_message=data.continue_final_message,
        )
        texts = [renderer.render(record) for record in records]
        encoded = _templated_ids(texts, tokenizer)
    else:
        encoded = _plain_ids([_plain_text(record) for record in records], tokenizer)
    for record, ids in zip(records, encoded, strict=True):
        if not ids:
            raise InputError(f"{record} has no tokens")
        if vocab_size is not None and max(ids) >= vocab_size:
            token = tokenizer.convert_ids_to_tokens(max(ids))
            raise InputError(
                f"{record}: its token {token!r} has id {max(ids)}, and the model's vocab_size is "
                f"{vocab_size}; use the tokenizer of this model, or resize its embedding"
            )
    return encoded


def report_too_long(lengths: Sequence[int], max_prompt_length: int) -> str:
    """How many of these numbers of tokens are above the limit."""
    longer = sum(length > max_prompt_length for length in lengths)
    return (
        f"{longer} of {len(lengths)} prompts are longer than data.max_prompt_length = "
        f"{max_prompt_length} tokens; the longest has {max(lengths)}"
    )


def _prompt(row: dict[str, Any], prompt_key: str | None, where: str) -> tuple[str, Any]:
    keys = DEFAULT_PROMPT_KEYS if prompt_key is None else (prompt_key,)
    key, prompt = first_found(row, keys)
    if prompt is ABSENT:
        raise InputError(
            f"{where}: there is no column {' or '.join(map(repr, keys))} (data.prompt_key); it "
            f"has {columns(row)}"
        )
    return key, prompt


def _answer(row: dict[str, Any], answer_key: str | None, where: str) -> tuple[str, Any]:
    keys = DEFAULT_ANSWER_KEYS if answer_key is None else (answer_key,)
    key, answer = first_found(row, keys)
    if answer is ABSENT:
        raise InputError(
            f"{where}: there is no answer column (data.answer_key: {' or '.join(keys)}); "
            f"it has {columns(row)}"
        )
    return key, answer


def _templated(messages: list[dict[str, Any]], template: str) -> list[dict[str, Any]]:
    """The messages with the last of the user's put into a template."""
    users = [number for number, each in enumerate(messages) if each["role"] == "user"]
    changed = list(messages)
    for number in users[-1:]:
        content = messages[number]["content"]
        changed[number] = messages[number] | {"content": template.replace(QUESTION, content)}
    return changed


def _tools(row: dict[str, Any], key: str, where: str) -> list[dict[str, Any]] | None:
    value = find(row, key)
    return None if value is ABSENT else read_tools(value, f"{where}, {key}")


def _compiled(answer_pattern: str | None) -> re.Pattern[str] | None:
    if answer_pattern is None:
        return None
    if wrong := pattern_problem(answer_pattern):
        raise SettingError("data.answer_pattern", answer_pattern, *wrong)
    return re.compile(answer_pattern)


def _cut(answer: Any, pattern: re.Pattern[str] | None, where: str) -> Any:
    if pattern is None:
        return answer
    if isinstance(answer, (dict, list)):
        raise InputError(
            f"{where}: it is a {kind_in_words(answer)}, and data.answer_pattern needs a text; name "
            "the field in data.answer_key"
        )
    found = pattern.search(str(answer))
    if found is None or is_blank(found[1]):
        raise InputError(
            f"{where}: data.answer_pattern = {pattern.pattern!r} finds nothing in "
            f"{shortened(answer)}"
        )
    return found[1].strip()


def _templated_ids(texts: list[str], tokenizer: Any) -> list[list[int]]:
    """A template writes the special tokens itself, before messages that may begin with one, too."""
    if not texts:
        return []
    bos = tokenizer.bos_token_id
    beginnings = [] if bos is None else [(bos,)]
    encoded = tokenizer(texts, add_special_tokens=False)["input_ids"]
    return [without_double_beginning(ids, beginnings) for ids in encoded]


def _plain_ids(texts: list[str], tokenizer: Any) -> list[list[int]]:
    """A text's tokens, after what the tokenizer puts before a text: not twice, and nothing behind,
    where the response is to begin."""
    if not texts:
        return []
    bare = tokenizer(texts, add_special_tokens=False)["input_ids"]
    whole = tokenizer(texts)["input_ids"]
    bos = tokenizer.bos_token_id
    read = []
    for ids, framed in zip(bare, whole, strict=True):
        places = range(len(framed) - len(ids) + 1)
        start = next((place for place in places if framed[place : place + len(ids)] == ids), 0)
        beginning = tuple(framed[:start])
        # Tokenizers that read a text otherwise where something stands before it decide themselves.
        given = [*beginning, *ids] if framed[start : start + len(ids)] == ids else framed
        read.append(without_double_beginning(given, [beginning, () if bos is None else (bos,)]))
    return read


def _plain_text(record: PromptRecord) -> str:
    text = record.messages[0].get("content")
    if len(record.messages) > 1 or text is None:
        found = f"{len(record.messages)} messages" if text is not None else "calls of tools"
        raise InputError(
            f"{record} has {found}, which only a chat template can join: set "
            "data.apply_chat_template to true, or give single texts and no data.system_prompt"
        )
    return text
