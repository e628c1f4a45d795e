"""What token files were made of, in a file beside them: which tokenizer, which text, how much."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron_resrl.config.model_place import read_json
from megatron_resrl.errors import InputError


@dataclass(frozen=True)
class Manifest:
    """Content of `<prefix>.json`; no time and no place of a process, so that it is reproducible."""

    tokenizer: str
    """Its directory, as it was given."""
    vocabulary_sha256: str
    """See `vocabulary_digest`."""
    vocab_size: int
    """One more than the largest token id."""
    bos_id: int | None
    """Before each document; None: nothing is."""
    eod_id: int | None
    """Behind each document; None: nothing is."""
    dtype: str
    text_key: str
    text_documents: str
    documents: int
    tokens: int
    empty_documents: int
    """Left out."""
    unreadable_documents: int
    """Left out."""
    text_bytes: int
    inputs: list[dict[str, Any]]
    """`path` and `bytes` of each file."""


def manifest_path(prefix: str | Path) -> Path:
    """The manifest of a dataset."""
    return Path(f"{prefix}.json")


def write_manifest(prefix: str | Path, manifest: Manifest) -> None:
    """Writes the manifest at once, so that it is never seen in part."""
    path = manifest_path(prefix)
    incomplete = path.with_name(path.name + ".incomplete")
    incomplete.write_text(json.dumps(dataclasses.asdict(manifest), indent=1), encoding="utf-8")
    os.replace(incomplete, path)


def read_manifest(prefix: str | Path) -> Manifest | None:
    """The manifest of a dataset; None: it has none, as files that Megatron-LM wrote.

    Raises:
        InputError: The file cannot be understood.
    """
    path = manifest_path(prefix)
    try:
        content = read_json(path)
        return None if content is None else Manifest(**content)
    except (OSError, ValueError, TypeError) as error:
        raise InputError(
            f"{path} is no manifest of tools/preprocess_data.py ({error}); delete it, or write the "
            "files again"
        ) from error


def check_tokenizer(prefix: str | Path, tokenizer: Any) -> Manifest | None:
    """Whether the tokens of a dataset mean the same to a tokenizer; its manifest.

    Nothing is known of files without a manifest.

    Raises:
        InputError: The dataset was made with another vocabulary.
    """
    manifest = read_manifest(prefix)
    if manifest is not None and manifest.vocabulary_sha256 != vocabulary_digest(tokenizer):
        raise InputError(
            f"{prefix}.bin was made with the tokenizer of {manifest.tokenizer} "
            f"({manifest.vocab_size} tokens), whose vocabulary differs from that of "
            f"{tokenizer.name_or_path} ({vocabulary_size(tokenizer)} tokens); preprocess the text "
            "with the model's tokenizer"
        )
    return manifest


def vocabulary_digest(tokenizer: Any) -> str:
    """SHA-256 of which token has which id: all that token ids mean.

    Files that are written again, by another release or with another chat template, keep it.

    Returns:
        64 hexadecimal digits.
    """
    ids = sorted(tokenizer.get_vocab().items(), key=lambda item: (item[1], item[0]))
    return hashlib.sha256(json.dumps(ids).encode()).hexdigest()


def vocabulary_size(tokenizer: Any) -> int:
    """One more than the largest token id."""
    return max(tokenizer.get_vocab().values(), default=-1) + 1
