"""The prompt of an environment that makes the first observation itself."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from megatron_resrl.config.schema import DataConfig
from megatron_resrl.data.prompts import encode_prompts
from megatron_resrl.data.records import PromptRecord
from megatron_resrl.errors import SettingError


def opening_encoder(
    tokenizer: Any, data: DataConfig
) -> Callable[[PromptRecord, str], tuple[int, ...]]:
    """Encodes prompts as `data` says for those of files.

    Args:
        tokenizer: A Hugging Face tokenizer.
        data: Chat template and length limit.

    Returns:
        (question, opening) -> token ids of the prompt, see `PromptRecord.opened`. Raises
        InputError where the prompt is too long, or the template refuses it.
    """

    def encode(record: PromptRecord, opening: str) -> tuple[int, ...]:
        [ids] = encode_prompts([record.opened(opening)], tokenizer, data)
        limit = data.max_prompt_length
        if len(ids) > limit:
            problem = f"with the opening of the environment the prompt has {len(ids)} tokens"
            raise SettingError("data.max_prompt_length", limit, problem, "raise it")
        return tuple(ids)

    return encode
