"""Whether token files of megatron-core's `IndexedDataset` can be trained on."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy

from megatron_resrl.corpus.index_file import (
    WRITE_AGAIN,
    Index,
    check_arrays,
    empty_documents,
    read_index,
)
from megatron_resrl.errors import InputError

_BLOCK = 1 << 22
"""Token ids that are looked at in one piece."""
_WINDOWS, _WINDOW = 512, 1 << 12
"""Places of a large file where token ids are looked at, and how many at each."""
_EDGE = 1 << 16
"""Token ids that are looked at from the first and up to the last."""
_SHOWN = 3
"""Empty documents that a message names."""


@dataclass(frozen=True)
class DatasetFacts:
    """What is known of token files that have passed the checks."""

    documents: int
    sequences: int
    tokens: int
    longest: int
    """Tokens of the longest sequence."""
    dtype: str
    """Of the token ids: uint16 or int32, as tools/preprocess_data.py and Megatron-LM write them."""
    empty_documents: int
    ids_read: int
    """Token ids that were compared with the vocabulary."""


def bin_path(prefix: str | Path) -> Path:
    """The file of the token ids of a dataset."""
    return Path(f"{prefix}.bin")


def idx_path(prefix: str | Path) -> Path:
    """The index file of a dataset."""
    return Path(f"{prefix}.idx")


def check_indexed_dataset(
    prefix: str | Path,
    vocab_size: int | None,
    *,
    whole: bool = False,
    allow_empty: bool = False,
) -> DatasetFacts:
    """Checks the .bin and .idx files of a dataset, in memory that does not grow with their size.

    The index is read whole, 20 bytes per document. Of the token ids a large file shows the first
    and last 65,536 and 4,096 at each of 512 places, unless `whole` is set.

    Args:
        prefix: Path of both files without `.bin` and `.idx`.
        vocab_size: Token ids must lie below it; None: they are not looked at.
        whole: Look at every token id.
        allow_empty: Accept documents without tokens, which Megatron-LM writes for empty text.

    Raises:
        InputError: A file is missing, corrupt, cut off or does not belong to the other; a document
            is empty; there are no documents; or a token id is not in the vocabulary.
    """
    bin_file, idx_file = bin_path(prefix), idx_path(prefix)
    for file in (idx_file, bin_file):
        if not file.is_file():
            raise InputError(f"there is no file {file}{_meant(prefix)}")
    index = read_index(idx_file)
    check_arrays(index)
    _check_bin_size(bin_file, index)
    empty = _count_empty(index, allow_empty)
    ids = numpy.memmap(bin_file, index.dtype, mode="r") if index.bin_bytes else numpy.empty(0)
    read = 0
    for start, stop in [] if vocab_size is None else _pieces(len(ids), whole):
        _check_ids(bin_file, index, ids[start:stop], start, vocab_size or 0)
        read += stop - start
    return DatasetFacts(
        documents=index.documents,
        sequences=len(index.lengths),
        tokens=len(ids),
        longest=int(index.lengths.max()),
        dtype=index.dtype.name,
        empty_documents=empty,
        ids_read=read,
    )


def _meant(prefix: str | Path) -> str:
    """What to give instead of a prefix without files."""
    text = str(prefix)
    for ending in (".bin", ".idx"):
        if text.endswith(ending):
            return f"; give {text.removesuffix(ending)}, without {ending}"
    near = sorted(Path(text).absolute().parent.glob(f"{Path(text).name}*.idx"))
    if near:
        return f"; did you mean {str(near[0]).removesuffix('.idx')}?"
    return "; give the path of a .bin and an .idx file without these endings"


def _check_bin_size(path: Path, index: Index) -> None:
    size, expected = path.stat().st_size, index.bin_bytes
    if size < expected:
        raise InputError(
            f"{path} is cut off in document {index.document_at(size)} of {index.documents}: "
            f"{size} bytes, and {index.path.name} describes {expected}; {WRITE_AGAIN}"
        )
    if size > expected:
        raise InputError(
            f"{path} is not the file that {index.path.name} describes: {size} bytes instead of "
            f"{expected}; {WRITE_AGAIN}"
        )


def _count_empty(index: Index, allow: bool) -> int:
    empty = empty_documents(index)
    first = [] if allow else list(itertools.islice(empty, _SHOWN))
    count = len(first) + sum(1 for _ in empty)
    if first:
        raise InputError(
            f"{index.path}: {count} of {index.documents} documents have no tokens, document "
            f"{', '.join(map(str, first))}{' among them' if count > len(first) else ''}; write the "
            "files again with tools/preprocess_data.py, which drops empty text"
        )
    return count


def _pieces(tokens: int, whole: bool) -> Iterator[tuple[int, int]]:
    """Which token ids are looked at: first and behind the last of each piece, in order."""
    if whole or tokens <= 2 * _EDGE + _WINDOWS * _WINDOW:
        for start in range(0, tokens, _BLOCK):
            yield start, min(start + _BLOCK, tokens)
        return
    yield 0, _EDGE
    # Evenly spaced between the two edges, each window inside.
    room = tokens - 2 * _EDGE - _WINDOW
    for number in range(_WINDOWS):
        start = _EDGE + room * number // (_WINDOWS - 1)
        yield start, start + _WINDOW
    yield tokens - _EDGE, tokens


def _check_ids(path: Path, index: Index, ids: numpy.ndarray, start: int, vocab_size: int) -> None:
    """Compares token ids with the vocabulary; `start` is the position of the first in the file."""
    if ids.max() < vocab_size and ids.min() >= 0:
        return
    at = int(((ids < 0) | (ids >= vocab_size)).argmax())
    document = index.document_at((start + at) * index.dtype.itemsize)
    raise InputError(
        f"{path}: document {document} holds the token id {ids[at]}, and the vocabulary has "
        f"{vocab_size} tokens (0 to {vocab_size - 1}); preprocess the text with the model's "
        "tokenizer"
    )
