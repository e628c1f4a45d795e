"""The recipe of supervised fine-tuning, with the sections of its own."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any

from megatron_resrl.config.ranges import above, at_least
from megatron_resrl.config.schema import RunSettings, WhenExact
from megatron_resrl.config.schema_questions import FileEntry


@dataclass(frozen=True)
class SftBatchConfig:
    """How many conversations a step takes, and how they pass through the model."""

    global_batch_size: Annotated[int, at_least(1)] = 128
    """Conversations per optimizer step, over all replicas."""
    micro_batch_size: Annotated[int, at_least(1)] = 1
    """Conversations per micro-batch of one data-parallel rank, without packing."""
    sequence_packing: bool = True
    """Put conversations behind each other, as many as fit into `tokens_per_micro_batch`."""
    tokens_per_micro_batch: Annotated[int | None, at_least(1)] = None
    """Token budget of a packed micro-batch; default: `data.max_length`."""
    shared_prefixes: WhenExact = "never"
    """Feed the model once what conversations of a micro-batch have in common at their beginning,
    such as a system message and its tools. `auto`: where the result is the same; `always`: refuse a
    run where it is not. `never`: every conversation is fed whole."""


@dataclass(frozen=True)
class SftDataConfig:
    """Conversations to learn from."""

    train_files: tuple[FileEntry, ...] = ()
    """.jsonl, .json or .parquet files (also .jsonl.gz and .jsonl.zst), folders of them, or
    patterns. An entry {path: FILE, messages_key: COLUMN} has keys of its own: messages_key,
    prompt_key, response_key, system_prompt, tools_key."""
    messages_key: str | None = None
    """Column with a conversation: messages with `role` and `content` (OpenAI, Hugging Face), or
    with `from` and `value` (ShareGPT); default: messages, then conversations."""
    prompt_key: str | None = None
    """Column with a question, where a row is no conversation; default: prompt, then question, then
    instruction."""
    response_key: str | None = None
    """Column with its answer; default: response, then completion, then answer, then output."""
    system_prompt: str | None = None
    """System message put before every conversation that has none."""
    tools_key: str | None = "tools"
    """Column with the tools (JSON schemas) that the chat template shows, where a row has it; null:
    show none."""
    chat_template_kwargs: dict[str, Any] = field(default_factory=dict)
    """Passed to the chat template, e.g. {"enable_thinking": false}."""
    max_length: Annotated[int, at_least(2)] = 4096
    """Longer conversations (tokens) are reported and dropped."""
    shuffle: bool = True
    """Visit conversations in a random order keyed by (seed, epoch)."""


@dataclass(frozen=True)
class SftEvaluationConfig:
    """Loss on held-out conversations, and answers to read."""

    files: tuple[FileEntry, ...] = ()
    """Files as in data.train_files; each file is a set with a loss of its own."""
    every: Annotated[int, at_least(0)] = 0
    """Steps between evaluations; 0: only before the first and after the last step."""
    max_conversations: Annotated[int | None, at_least(1)] = None
    """Use only the first conversations of each file."""
    samples: Annotated[int, at_least(0)] = 2
    """Conversations of each file whose first assistant's turn the model writes itself, to read."""
    max_response_length: Annotated[int, at_least(1)] = 256
    """Tokens of such an answer."""
    temperature: Annotated[float, at_least(0)] = 0.0
    """Sampling temperature of such an answer; 0: the likeliest token each time."""


@dataclass(frozen=True)
class SftRecipe(RunSettings):
    """All settings of a run of supervised fine-tuning."""

    epochs: Annotated[float | None, above(0)] = None
    """Passes over the conversations, instead of `steps`; null: `steps` says how long the run is."""
    data: SftDataConfig = field(default_factory=SftDataConfig)
    batch: SftBatchConfig = field(default_factory=SftBatchConfig)
    evaluation: SftEvaluationConfig = field(default_factory=SftEvaluationConfig)
