"""The model's tokenizer, from a local directory."""

from __future__ import annotations

from typing import Any

from transformers import AutoTokenizer

from megatron_resrl.config.schema import ModelConfig
from megatron_resrl.errors import InputError


def load_tokenizer(model: ModelConfig) -> Any:
    """Reads the tokenizer of `model.tokenizer_path`, or of `model.path`.

    Raises:
        InputError: The directory holds no tokenizer that transformers can read.
    """
    setting = "model.tokenizer_path" if model.tokenizer_path else "model.path"
    path = model.tokenizer_path or model.path
    try:
        return AutoTokenizer.from_pretrained(path, local_files_only=True)
    except (OSError, ValueError) as error:
        raise InputError(
            f"{setting} is {path!r}, which holds no readable tokenizer: {error}"
        ) from error
