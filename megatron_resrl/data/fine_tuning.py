"""What supervised fine-tuning learns from: conversations as token ids with their targets."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from megatron_resrl.config.problems import RecipeError
from megatron_resrl.config.schema_questions import FileEntry
from megatron_resrl.config.schema_sft import SftDataConfig
from megatron_resrl.data.assistant_turns import TurnTokens
from megatron_resrl.data.conversations import conversation_files, read_conversations
from megatron_resrl.data.records import PromptRecord
from megatron_resrl.errors import InputError
from megatron_resrl.policy.batches import TokenSequence

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Example:
    """One sequence to learn from, in little memory."""

    token_ids: np.ndarray
    """[n] int32."""
    targets: np.ndarray
    """[n] bool: the tokens that are learned; never the first."""
    record: PromptRecord
    """The conversation that it is made of."""

    def __len__(self) -> int:
        return len(self.token_ids)

    @property
    def sequence(self) -> TokenSequence:
        """As the policy takes it: a prompt of one token, and a response with its mask."""
        ids, targets = self.token_ids.tolist(), self.targets.tolist()
        return TokenSequence((ids[0],), tuple(ids[1:]), tuple(targets[1:]))

    @property
    def prompt(self) -> tuple[int, ...]:
        """The tokens before the first one that is learned."""
        return tuple(self.token_ids[: int(self.targets.argmax())].tolist())


def read_examples(
    setting: str,
    entries: Sequence[FileEntry],
    data: SftDataConfig,
    tokenizer: Any,
    vocab_size: int,
    limit: int | None = None,
) -> dict[str, list[Example]]:
    """Reads and tokenizes conversations. Reports and drops those that are too long.

    Args:
        setting: For messages.
        entries: Its files.
        data: Columns where a file does not say them, chat template and length limit.
        tokenizer: The model's.
        vocab_size: Rows of the model's embedding.
        limit: Read only the first rows of each file.

    Returns:
        Name of each file -> its examples, in the order of the files.

    Raises:
        RecipeError: An entry is malformed, or names no file.
        InputError: A file, a row or the chat template cannot be used; or no conversation is short
            enough.
    """
    files, problems = conversation_files(setting, entries, data)
    if problems:
        raise RecipeError(problems)
    turns = TurnTokens(tokenizer, data.chat_template_kwargs, vocab_size)
    found: dict[str, list[Example]] = {}
    for file in files:
        examples = [
            Example(
                np.array(marked.token_ids, dtype=np.int32),
                np.array(marked.targets, dtype=bool),
                conversation.record,
            )
            for conversation in read_conversations(file, limit)
            for marked in turns.sequences(conversation)
        ]
        found.setdefault(file.name, []).extend(_short_enough(examples, data.max_length, file.path))
    return found


def digest(examples: Iterable[Example]) -> str:
    """SHA-256 over tokens and targets, in order; 64 hexadecimal digits."""
    total = hashlib.sha256()
    for example in examples:
        total.update(len(example).to_bytes(8, "little"))
        total.update(example.token_ids.astype("<i4").tobytes())
        total.update(example.targets.tobytes())
    return total.hexdigest()


def _short_enough(examples: list[Example], max_length: int, path: str) -> list[Example]:
    kept = [example for example in examples if len(example) <= max_length]
    if len(kept) < len(examples):
        report = (
            f"{path}: {len(examples) - len(kept)} of {len(examples)} conversations are longer than "
            f"data.max_length = {max_length} tokens; the longest has {max(map(len, examples))}"
        )
        if not kept:
            raise InputError(f"{report}: no conversation is left, raise the limit")
        logger.warning("%s: they are dropped", report)
    return kept
