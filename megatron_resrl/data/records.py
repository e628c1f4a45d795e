"""A question, as it stands in its file and as the model reads it."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any


@dataclass(frozen=True)
class PromptRecord:
    """One question as it stands in its file."""

    index: int
    """Position in the file, from 0."""
    messages: list[dict[str, Any]]
    """Chat messages, each with `role` and the text `content` (None beside `tool_calls`)."""
    ground_truth: Any
    """What the reward function compares with."""
    data_source: str
    """Name of the dataset."""
    extra: dict[str, Any]
    """The other columns."""
    tools: list[dict[str, Any]] | None = None
    """JSON schemas of the tools that the chat template shows."""
    place: str = field(default="", compare=False)
    """File and line or row, for messages."""

    def opened(self, text: str) -> PromptRecord:
        """The question with more text at the end of the user's last message, after an empty line,
        or in a message of the user's where the last message is another's."""
        *before, last = self.messages
        if last["role"] != "user":
            return replace(self, messages=[*self.messages, {"role": "user", "content": text}])
        content = "\n\n".join(filter(None, (last["content"], text)))
        return replace(self, messages=[*before, last | {"content": content}])

    def __str__(self) -> str:
        return self.place or f"prompt {self.index} of {self.data_source}"


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
