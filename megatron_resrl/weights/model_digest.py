"""Which model lies in a directory: digests that do not take the time to read all of it."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from megatron_resrl.config.model_place import find_model
from megatron_resrl.errors import InputError
from megatron_resrl.weights.files import stored_tensors
from megatron_resrl.weights.megatron_folders import find_checkpoint, holds_megatron

_VOLATILE = ("transformers_version", "_name_or_path")
"""Keys of config.json that say who wrote it."""
_TOKENIZER_FILES = (
    *("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "special_tokens_map.json"),
    *("added_tokens.json", "vocab.json", "merges.txt", "chat_template.jinja", "chat_template.json"),
)
_WHOLE = 4 * 2**20
"""Files up to so many bytes are read whole."""
_BLOCK = 4096
_BLOCKS = 4096
"""Blocks read of all larger files together."""


def model_digests(path: str, tokenizer_path: str | None, *, weights: bool = True) -> dict[str, str]:
    """Digests of a model's configuration, weights and tokenizer, by what they are of.

    Args:
        path: See `find_model`.
        tokenizer_path: Directory of the tokenizer; None: the model's.
        weights: False: those of the directory are not used, if there are any.

    Raises:
        InputError: There are no weights, or a file cannot be read.
    """
    place = find_model(path)
    tokenizer = find_model(tokenizer_path or path).files
    try:
        return {
            "config.json": _config_digest(place.files / "config.json"),
            "generation_config.json": _config_digest(place.files / "generation_config.json"),
            "weights": _weights_digest(place.weights) if weights else "fresh",
            "tokenizer": _files_digest(tokenizer, _TOKENIZER_FILES),
        }
    except OSError as error:
        raise InputError(f"model.path = {path!r} cannot be read: {error}") from error


def _config_digest(path: Path) -> str:
    if not path.is_file():
        return "none"
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{path} is not valid JSON ({error}); fetch the model again") from error
    if isinstance(content, dict):
        content = {key: value for key, value in content.items() if key not in _VOLATILE}
    return _short(hashlib.sha256(json.dumps(content, sort_keys=True).encode()))


def _weights_digest(directory: Path) -> str:
    """Of the weight files' names, sizes and some of their bytes, whenever they were written."""
    if not holds_megatron(directory):
        files = sorted({tensor.file for tensor in stored_tensors(directory).values()})
    else:
        folder = find_checkpoint(directory)
        files = sorted(file for file in folder.rglob("*") if file.is_file())
    digest = hashlib.sha256()
    for file in files:
        size = file.stat().st_size
        digest.update(f"{file.relative_to(directory)} {size}\n".encode())
        with file.open("rb") as opened:
            if size <= _WHOLE:
                digest.update(opened.read())
                continue
            blocks = max(64, _BLOCKS // len(files))
            for number in range(blocks):
                opened.seek((size - _BLOCK) * number // (blocks - 1))
                digest.update(opened.read(_BLOCK))
    return _short(digest)


def _files_digest(directory: Path, names: tuple[str, ...]) -> str:
    digest = hashlib.sha256()
    for name in names:
        if (directory / name).is_file():
            digest.update(f"{name}\n".encode() + (directory / name).read_bytes())
    return _short(digest)


def _short(digest: hashlib._Hash) -> str:
    return digest.hexdigest()[:16]
