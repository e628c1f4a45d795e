"""What supervised fine-tuning learns from: conversations as token ids with their targets."""

from __future__ import annotations

import hashlib
import itertools
import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from megatron_resrl.config.problems import RecipeError
from megatron_resrl.config.schema_questions import FileEntry
from megatron_resrl.config.schema_sft import SftDataConfig
from megatron_resrl.data.assistant_turns import TurnTokens
from megatron_resrl.data.conversations import (
    conversation_files,
    conversation_of,
    conversation_rows,
)
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


@dataclass
class FilePart:
    """What one rank has made of its rows of a file; ranks send it to each other."""

    name: str
    path: str
    examples: list[Example] = field(default_factory=list)
    error: tuple[int, str] | None = None
    """Number of the row that cannot be used, and why; no row behind it has been read."""


def read_part(
    setting: str,
    entries: Sequence[FileEntry],
    data: SftDataConfig,
    tokenizer: Any,
    vocab_size: int,
    limit: int | None = None,
    *,
    rank: int = 0,
    ranks: int = 1,
) -> list[FilePart]:
    """Reads files of conversations and tokenizes this rank's rows, every `ranks`-th.

    Args:
        setting: For messages.
        entries: Its files.
        data: Columns where a file does not say them, and the chat template's arguments.
        tokenizer: The model's.
        vocab_size: Rows of the model's embedding.
        limit: Read only the first rows of each file.
        rank: Of this process.
        ranks: That share the work.

    Returns:
        A part of each file, in their order, up to the first with a row that cannot be used.

    Raises:
        RecipeError: An entry is malformed, or names no file.
        InputError: The chat template cannot be used.
    """
    files, problems = conversation_files(setting, entries, data)
    if problems:
        raise RecipeError(problems)
    turns = TurnTokens(tokenizer, data.chat_template_kwargs, vocab_size)
    parts = []
    for file in files:
        part = FilePart(file.name, file.path)
        parts.append(part)
        row = 0
        try:
            for where, columns in conversation_rows(file, limit):
                if row % ranks == rank:
                    conversation = conversation_of(file, row, where, columns)
                    part.examples += [
                        Example(
                            np.array(marked.token_ids, dtype=np.int32),
                            np.array(marked.targets, dtype=bool),
                            conversation.record,
                        )
                        for marked in turns.sequences(conversation)
                    ]
                row += 1
        # Other ranks may find another row first: `put_together` raises the first of all.
        except InputError as error:
            part.error = (row, str(error))
            break
    return parts


def put_together(
    parts_of_ranks: Sequence[Sequence[FilePart]], max_length: int
) -> dict[str, list[Example]]:
    """The examples of all ranks' parts, as if one rank had read all. Reports those too long.

    Args:
        parts_of_ranks: What `read_part` has given each rank.
        max_length: Longer examples, in tokens, are dropped.

    Returns:
        Name of each file -> its examples, in the order of the files.

    Raises:
        InputError: A file or a row cannot be used, the first one of all; or no conversation of a
            file is short enough.
    """
    found: dict[str, list[Example]] = {}
    # A rank that found an error has no part of the files behind; nobody gets there.
    for parts in itertools.zip_longest(*parts_of_ranks):
        present = [part for part in parts if part is not None]
        errors = [part.error for part in present if part.error is not None]
        if errors:
            raise InputError(min(errors)[1])
        # Examples of one row are neighbours, and stay in their order.
        examples = sorted(
            (example for part in present for example in part.examples),
            key=lambda example: example.record.index,
        )
        kept = _short_enough(examples, max_length, present[0].path)
        found.setdefault(present[0].name, []).extend(kept)
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
