"""Whether a tokenizer's ids are rows of a model's embedding."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from megatron_resrl.config.model_place import read_json
from megatron_resrl.errors import InputError

TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json")
"""One of them is in every directory of a tokenizer."""
_MAPPINGS = ("vocab.json", "added_tokens.json")
"""Files that map tokens to ids, beside tokenizer.json or instead of it."""


class TokenIds(NamedTuple):
    """What a tokenizer says of a model's configuration."""

    size: int | None
    """Rows of an embedding that its ids need; None: there is no tokenizer."""
    special: dict[str, int | None]
    """`bos_token_id`, `eos_token_id` and `pad_token_id`."""


def token_ids(directory: Path) -> TokenIds:
    """Reads a tokenizer, of any kind, for its ids.

    Raises:
        InputError: transformers cannot read it.
    """
    # Here, because it takes seconds and is for checkpoints of Megatron-LM only.
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(directory, local_files_only=True)
    except Exception as error:  # tokenizers raises Exception itself; the files may hold anything.
        raise InputError(
            f"{directory} holds no tokenizer that transformers can read ({error}); give the "
            "directory of a Hugging Face tokenizer"
        ) from error
    special = {
        name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")
    }
    return TokenIds(max(tokenizer.get_vocab().values()) + 1, special)


def tokens_beyond(ids: Mapping[str, int], vocab_size: int) -> str | None:
    """What is wrong if tokens have ids without a row in the embedding; None: nothing.

    Args:
        ids: Of all tokens of a tokenizer.
        vocab_size: Rows of the embedding, as config.json says.
    """
    token, largest = max(ids.items(), key=lambda item: item[1], default=("", -1))
    if largest < vocab_size:
        return None
    return (
        f"the tokenizer has token ids up to {largest} ({token!r}), and the vocab_size in "
        f"config.json is {vocab_size}"
    )


def read_ids(directory: Path) -> dict[str, int]:
    """The ids of all tokens, from a tokenizer's JSON files.

    Raises:
        ValueError: A file cannot be understood; the message names it.
    """
    ids: dict[str, int] = {}
    for name in ("tokenizer.json", "tokenizer_config.json", *_MAPPINGS):
        try:
            content = read_json(directory / name)
            if content is not None:
                ids |= _ids_of(name, content)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            problem = f"{directory / name} cannot be read ({type(error).__name__}: {error})"
            raise ValueError(problem) from error
    return ids


def _ids_of(name: str, content: Any) -> dict[str, int]:
    if name in _MAPPINGS:
        return {token: int(number) for token, number in content.items()}
    if name == "tokenizer_config.json":
        added = content.get("added_tokens_decoder") or {}
        return {token["content"]: int(number) for number, token in added.items()}
    vocabulary = content["model"].get("vocab") or {}
    if not isinstance(vocabulary, dict):  # Unigram: tokens with their scores, in order.
        vocabulary = {token: number for number, (token, _) in enumerate(vocabulary)}
    added = content.get("added_tokens") or ()
    return vocabulary | {token["content"]: token["id"] for token in added}
