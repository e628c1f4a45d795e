"""The model's tokenizer, from a local directory."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import tokenizers
import transformers
from transformers import AutoConfig, AutoTokenizer

from megatron_resrl.config.model_place import find_model
from megatron_resrl.config.schema import ModelConfig
from megatron_resrl.errors import SettingError

CONFIG = "config.json"
"""Says to transformers which class of tokenizer a model has."""

_JSON_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
)


def load_tokenizer(model: ModelConfig) -> Any:
    """Reads the tokenizer of `model.tokenizer_path`, or of `model.path`.

    Raises:
        SettingError: The directory holds no tokenizer that the installed libraries can read.
    """
    setting = "model.tokenizer_path" if model.tokenizer_path else "model.path"
    return read_tokenizer(setting, model.tokenizer_path or model.path)


def read_tokenizer(setting: str, path: str) -> Any:
    """Reads the tokenizer of a model's directory.

    Args:
        setting: For messages.
        path: Its value; see `find_model` for what it may be.

    Raises:
        SettingError: The directory holds no tokenizer that the installed libraries can read.
    """
    files = find_model(path).files
    try:
        return AutoTokenizer.from_pretrained(files, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # tokenizers raises Exception itself; the files may hold anything.
        problem, fix = _cause(files, error)
        raise SettingError(setting, path, problem, fix) from error


def _cause(directory: Path, error: Exception) -> tuple[str, str]:
    """Which file it is, and what helps."""
    try:
        if (directory / CONFIG).is_file():
            AutoConfig.from_pretrained(directory, local_files_only=True, trust_remote_code=False)
    except Exception as wrong:  # Of many classes.
        return f"{CONFIG} is not accepted by transformers ({wrong})", "fetch the model again"
    for name in _JSON_FILES:
        try:
            if (directory / name).is_file():
                json.loads((directory / name).read_text(encoding="utf-8"))
        except ValueError as wrong:
            return f"{name} is not valid JSON ({wrong})", "fetch the tokenizer again"
    file = directory / "tokenizer.json"
    try:
        if file.is_file():
            tokenizers.Tokenizer.from_file(str(file))
    except Exception as wrong:  # See above.
        return (
            f"tokenizer.json is not understood by the installed tokenizers {tokenizers.__version__}"
            f" ({wrong})",
            "fetch the file again, or install the release of tokenizers that wrote it",
        )
    return (
        f"transformers {transformers.__version__} and tokenizers {tokenizers.__version__} say "
        f"{type(error).__name__}: {error}",
        "give a directory with the tokenizer of a Hugging Face model that these releases know",
    )
