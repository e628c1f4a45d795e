"""What belongs to a model besides its weights: configuration, tokenizer, chat template."""

from __future__ import annotations

import shutil
from pathlib import Path

_PATTERNS = ("*.json", "*.jinja", "*.model", "*.txt", "*.tiktoken", "*.py")
MARKER = "latest_checkpointed_iteration.txt"
"""Megatron-LM's file that names the newest checkpoint beside it."""
_OF_WEIGHTS = ("model.safetensors.index.json", "pytorch_model.bin.index.json", MARKER)
_TEMPLATES = "additional_chat_templates"


def copy_model_files(source: str | Path, target: str | Path) -> list[str]:
    """Copies the small files of a Hugging Face model directory, byte by byte.

    They are copied and not loaded and saved, so that a tokenizer of any kind arrives as it was:
    config.json, generation_config.json, chat templates, and the files of fast (tokenizer.json),
    sentencepiece (tokenizer.model), BPE (vocab.json, merges.txt) and custom tokenizers.

    Args:
        source: Of the model.
        target: Made if absent; files of the same name are replaced.

    Returns:
        Names of the files, sorted.
    """
    source, target = Path(source), Path(target)
    target.mkdir(parents=True, exist_ok=True)
    names = sorted({path.name for pattern in _PATTERNS for path in source.glob(pattern)})
    copied = [name for name in names if name not in _OF_WEIGHTS]
    for name in copied:
        shutil.copyfile(source / name, target / name)
    if (source / _TEMPLATES).is_dir():
        shutil.copytree(source / _TEMPLATES, target / _TEMPLATES, dirs_exist_ok=True)
        copied.append(_TEMPLATES)
    return copied
