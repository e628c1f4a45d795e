"""Questions read from a file and tokenized, with settings given one by one."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from megatron_resrl.config.schema import DataConfig
from megatron_resrl.data import prompts
from megatron_resrl.data.file_entries import set_name
from megatron_resrl.data.question_files import QuestionFile
from megatron_resrl.data.records import PromptRecord, TokenizedPrompts


def load_prompts(
    path: str | Path,
    *,
    tools_key: str | None = "tools",
    limit: int | None = None,
    **keys: Any,
) -> list[PromptRecord]:
    """The records of a file; `keys` are fields of `QuestionFile`."""
    file = QuestionFile(str(path), set_name(path), **keys)
    return prompts.load_prompts(file, tools_key=tools_key, limit=limit)


def tokenize_prompts(
    records: Sequence[PromptRecord],
    tokenizer: Any,
    *,
    vocab_size: int | None = None,
    **settings: Any,
) -> TokenizedPrompts:
    """The token ids of records; `settings` are fields of `DataConfig`."""
    data = DataConfig(**settings)
    return prompts.tokenize_prompts(records, tokenizer, data, vocab_size=vocab_size)
