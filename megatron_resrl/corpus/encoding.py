"""Documents as token ids: what the processes of tools/preprocess_data.py do with a shard."""

from __future__ import annotations

import itertools
import os
import signal
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy
from transformers.tokenization_utils_tokenizers import TokenizersBackend

from megatron_resrl.corpus.text_files import Shard, TextDocuments, read_texts
from megatron_resrl.errors import InputError
from megatron_resrl.platform.ending import end_with_parent

_BATCH_CHARACTERS = 1 << 18
"""Of the texts that are given to the tokenizer at once, about."""
_COMPLAINTS = 3
"""Unreadable documents of a shard whose place is told."""


@dataclass(frozen=True)
class DocumentFormat:
    """How a document is made of its text."""

    text_key: str
    """Column of the text."""
    text_documents: TextDocuments
    """What is one document of a text file."""
    beginning: tuple[int, ...]
    """Token ids before each document."""
    end: tuple[int, ...]
    """Token ids behind each document."""
    drop_unreadable: bool
    """Leave out documents that cannot be read, instead of raising an error."""


@dataclass(frozen=True)
class Counts:
    """What became of the text."""

    documents: int = 0
    """With at least one token of their own."""
    tokens: int = 0
    """Beginnings and ends of documents included."""
    empty: int = 0
    """Documents left out because they hold nothing but white space."""
    unreadable: int = 0
    """Documents left out because they cannot be read."""
    text_bytes: int = 0
    """UTF-8 of the documents."""

    def __add__(self, other: Counts) -> Counts:
        names = [field.name for field in fields(self)]
        return Counts(**{name: getattr(self, name) + getattr(other, name) for name in names})


@dataclass(frozen=True)
class EncodedShard:
    """A shard as token ids."""

    token_ids: bytes
    """Of all documents, in the type of the .bin file."""
    lengths: bytes
    """int32, tokens of each document."""
    counts: Counts
    complaints: tuple[str, ...]
    """What is wrong with the first unreadable documents."""


class Encoder:
    """Texts to token ids, exactly as `tokenizer.encode(text, add_special_tokens=False)`.

    Tokenizers of the tokenizers library are called in batches and without character offsets, which
    takes less time.

    Args:
        tokenizer: A Hugging Face tokenizer; its truncation and padding are switched off.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._backend = None
        # A class with an encoding of its own is left to it.
        if getattr(type(tokenizer), "_encode_plus", None) is TokenizersBackend._encode_plus:
            self._backend = tokenizer.backend_tokenizer
            self._backend.no_truncation()
            self._backend.no_padding()
            self._backend.encode_special_tokens = tokenizer.split_special_tokens

    def __call__(self, texts: Sequence[str]) -> list[list[int]]:
        """The token ids of each text, without special tokens added."""
        if self._backend is None:
            return [self.one(text) for text in texts]
        encoded = self._backend.encode_batch_fast(list(texts), add_special_tokens=False)
        return [each.ids for each in encoded]

    def one(self, text: str) -> list[int]:
        """The token ids of a text as transformers computes them."""
        return self._tokenizer.encode(text, add_special_tokens=False, verbose=False)


def encode_shard(
    shard: Shard, encoder: Encoder, form: DocumentFormat, dtype: numpy.dtype
) -> EncodedShard:
    """Token ids of a shard's documents.

    Raises:
        InputError: A document cannot be read, and `form` does not say to leave it out; or the
            tokenizer gives an id that `dtype` does not hold.
    """
    problems: list[str] = []

    def unreadable(error: InputError) -> None:
        if not form.drop_unreadable:
            raise InputError(f"{error}; or leave such documents out: --unreadable drop") from error
        problems.append(str(error))

    token_ids: list[numpy.ndarray] = []
    lengths: list[int] = []
    counts = Counts()
    for batch in _batches(read_texts(shard, form.text_key, unreadable)):
        filled = [text for text in batch if not is_blank(text)]
        encoded = [(*form.beginning, *ids, *form.end) for ids in encoder(filled) if ids]
        flat = numpy.fromiter(itertools.chain.from_iterable(encoded), numpy.int64)
        token_ids.append(_narrowed(flat, dtype))
        lengths += map(len, encoded)
        counts += Counts(
            documents=len(encoded),
            tokens=len(flat),
            empty=len(batch) - len(encoded),
            text_bytes=sum(len(text.encode()) for text in filled),
        )
    return EncodedShard(
        b"".join(each.tobytes() for each in token_ids),
        numpy.array(lengths, dtype=numpy.int32).tobytes(),
        counts + Counts(unreadable=len(problems)),
        tuple(problems[:_COMPLAINTS]),
    )


def is_blank(text: str) -> bool:
    """Whether a document holds nothing but white space."""
    return not text or text.isspace()


def _batches(documents: Iterator[tuple[str, str]]) -> Iterator[list[str]]:
    """Texts in groups of about `_BATCH_CHARACTERS`."""
    batch: list[str] = []
    characters = 0
    for _, text in documents:
        batch.append(text)
        characters += len(text)
        if characters >= _BATCH_CHARACTERS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch


def _narrowed(token_ids: numpy.ndarray, dtype: numpy.dtype) -> numpy.ndarray:
    limit = numpy.iinfo(dtype).max
    if len(token_ids) and (token_ids.max() > limit or token_ids.min() < 0):
        wrong = token_ids[(token_ids > limit) | (token_ids < 0)][0]
        raise InputError(
            f"--tokenizer gives the token id {wrong}, which is not in its vocabulary; give files "
            "that belong together"
        )
    return token_ids.astype(dtype)


_worker: tuple[Encoder, DocumentFormat, numpy.dtype] | None = None


def start_worker(tokenizer: Any, form: DocumentFormat, dtype: numpy.dtype) -> None:
    """Prepares a process for `encode_in_worker`."""
    global _worker
    end_with_parent()
    # The command itself handles ^C, which reaches the whole group of processes.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # Each process has one thread; the library would use all cores.
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    _worker = Encoder(tokenizer), form, dtype


def encode_in_worker(shard: Shard) -> EncodedShard:
    """`encode_shard` with what `start_worker` was given."""
    assert _worker is not None
    return encode_shard(shard, *_worker)


def do_nothing() -> None:
    """Makes a pool start its processes."""
