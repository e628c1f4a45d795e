"""The .idx file of megatron-core's `IndexedDataset`: read with checks, written in little memory.

Layout, little-endian: a header of 34 bytes (magic, version, code of the token ids' type, S, D),
then S sequence lengths (int32, in tokens), S sequence pointers (int64, in bytes of the .bin file)
and D document indices (int64). Document d has the sequences from index d up to, not including,
index d + 1; D is one more than the documents. megatron-core: `datasets/indexed_dataset.py`, whose
own writer keeps Python lists of all sequences.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy
from megatron.core.datasets.indexed_dataset import DType

from megatron_resrl.errors import InputError

MAGIC = b"MMIDIDX\x00\x00"
VERSION = 1
_HEADER = struct.Struct("<9sQBQQ")
_LENGTH, _OFFSET = numpy.dtype("<i4"), numpy.dtype("<i8")
_BLOCK = 1 << 20
"""Entries of an array that are read or written at a time."""

WRITE_AGAIN = "copy both files again, or write them again with tools/preprocess_data.py"


@dataclass(frozen=True)
class Index:
    """The arrays of an .idx file, mapped and not read yet."""

    path: Path
    dtype: numpy.dtype
    """Of the token ids in the .bin file."""
    lengths: numpy.ndarray
    """[S] int32, tokens of each sequence."""
    pointers: numpy.ndarray
    """[S] int64, where each sequence begins in the .bin file, in bytes."""
    document_indices: numpy.ndarray
    """[D] int64, the first sequence of each document, and at last S."""

    @property
    def documents(self) -> int:
        """Number of documents."""
        return len(self.document_indices) - 1

    @property
    def bin_bytes(self) -> int:
        """Size of the .bin file that the last sequence ends."""
        if len(self.lengths) == 0:
            return 0
        return int(self.pointers[-1]) + int(self.lengths[-1]) * self.dtype.itemsize

    def document_at(self, offset: int) -> int:
        """The document that a byte of the .bin file belongs to."""
        # Empty sequences and documents share their beginning with the next one, which is found.
        sequence = int(numpy.searchsorted(self.pointers, offset, side="right")) - 1
        return self.document_of(sequence)

    def document_of(self, sequence: int) -> int:
        """The document that a sequence belongs to."""
        return int(numpy.searchsorted(self.document_indices, sequence, side="right")) - 1


def read_index(path: Path) -> Index:
    """Maps an .idx file whose header and size agree; see `check_arrays` for its content.

    Raises:
        InputError: It is not such a file, is cut off, or has no documents.
    """
    with path.open("rb") as file:
        header = file.read(_HEADER.size)
    if not header.startswith(MAGIC):
        raise InputError(
            f"{path} is no index of token files: it begins with {header[:9]!r} and not with "
            f"{MAGIC!r}; give files that tools/preprocess_data.py or Megatron-LM wrote"
        )
    if len(header) < _HEADER.size:
        problem = f"{len(header)} bytes, and the header alone has {_HEADER.size}"
        raise InputError(f"{path} is cut off: {problem}; {WRITE_AGAIN}")
    _, version, code, sequences, entries = _HEADER.unpack(header)
    if version != VERSION:
        problem = f"version {version}, and only {VERSION} is known"
        raise InputError(f"{path} has {problem}; {WRITE_AGAIN}")
    dtype = _token_dtype(path, code)
    _check_size(path, sequences, entries)
    if sequences == 0 or entries < 2:
        raise InputError(f"{path} holds no documents; give input with text to preprocess_data.py")

    def mapped(dtype: numpy.dtype, offset: int, count: int) -> numpy.ndarray:
        return numpy.memmap(path, dtype, mode="r", offset=offset, shape=(count,))

    after_lengths = _HEADER.size + sequences * _LENGTH.itemsize
    after_pointers = after_lengths + sequences * _OFFSET.itemsize
    return Index(
        path,
        dtype,
        mapped(_LENGTH, _HEADER.size, sequences),
        mapped(_OFFSET, after_lengths, sequences),
        mapped(_OFFSET, after_pointers, entries),
    )


def check_arrays(index: Index) -> None:
    """Reads the whole index: sequences follow each other, and documents hold all of them.

    Raises:
        InputError: An entry contradicts the ones before it; its document is named.
    """
    expected = 0
    for start, lengths in _blocks(index.lengths):
        pointers = index.pointers[start : start + len(lengths)]
        ends = expected + numpy.cumsum(lengths, dtype=numpy.int64) * index.dtype.itemsize
        wrong = numpy.concatenate(([expected], ends[:-1])) != pointers
        wrong |= lengths < 0
        if wrong.any():
            sequence = start + int(wrong.argmax())
            raise InputError(
                f"{index.path} is corrupt: sequence {sequence}, of document "
                f"{index.document_of(sequence)}, has {index.lengths[sequence]} tokens from byte "
                f"{index.pointers[sequence]} on, which does not follow the sequence before it; "
                f"{WRITE_AGAIN}"
            )
        expected = int(ends[-1])
    before = 0
    for start, entries in _blocks(index.document_indices):
        wrong = numpy.diff(entries, prepend=before) < 0
        wrong |= entries > len(index.lengths)
        if start == 0 and entries[0] != 0:
            wrong[0] = True
        if wrong.any():
            document = start + int(wrong.argmax())
            raise InputError(
                f"{index.path} is corrupt: document {document} begins at sequence "
                f"{index.document_indices[document]} of {len(index.lengths)}, which does not "
                f"follow the document before it; {WRITE_AGAIN}"
            )
        before = int(entries[-1])
    if before != len(index.lengths):
        raise InputError(
            f"{index.path} is corrupt: its last document ends at sequence {before}, and there are "
            f"{len(index.lengths)} sequences; {WRITE_AGAIN}"
        )


def empty_documents(index: Index) -> Iterator[int]:
    """Documents without tokens, in order.

    Megatron-LM writes empty text as a document without sequences; other files have sequences of
    length 0.
    """
    pointers_end = index.bin_bytes
    for start, entries in _blocks(index.document_indices[:-1]):
        following = index.document_indices[start + 1 : start + 1 + len(entries)]

        def byte_of(sequences: numpy.ndarray) -> numpy.ndarray:
            inside = numpy.minimum(sequences, len(index.pointers) - 1)
            return numpy.where(
                sequences < len(index.pointers), index.pointers[inside], pointers_end
            )

        same = byte_of(entries) == byte_of(following)
        yield from (start + int(each) for each in numpy.flatnonzero(same))


def write_index(path: Path, dtype: Any, lengths: numpy.ndarray) -> None:
    """Writes the index of documents of one sequence each, as megatron-core's builder would.

    Args:
        path: The .idx file; replaced if it exists.
        dtype: Type of the token ids, one that megatron-core's `DType` has.
        lengths: [S] int32, tokens of each document; may be mapped from a file.
    """
    scalar = numpy.dtype(dtype)
    count = len(lengths)
    with path.open("wb") as file:
        code = DType.code_from_dtype(scalar.type)
        file.write(_HEADER.pack(MAGIC, VERSION, code, count, count + 1))
        for _, block in _blocks(lengths):
            file.write(block.astype(_LENGTH).tobytes())
        before = 0
        for _, block in _blocks(lengths):
            ends = before + numpy.cumsum(block, dtype=numpy.int64) * scalar.itemsize
            file.write(numpy.concatenate(([before], ends[:-1])).astype(_OFFSET).tobytes())
            before = int(ends[-1])
        for start in range(0, count + 1, _BLOCK):
            stop = min(start + _BLOCK, count + 1)
            file.write(numpy.arange(start, stop, dtype=_OFFSET).tobytes())
        file.flush()
        os.fsync(file.fileno())


def _token_dtype(path: Path, code: int) -> numpy.dtype:
    known = {each.value: each.name for each in DType}
    name = known.get(code)
    if name is None:
        known_codes = ", ".join(map(str, sorted(known)))
        problem = f"type code {code} is none of {known_codes}"
        raise InputError(f"{path} is corrupt: {problem}; {WRITE_AGAIN}")
    dtype = numpy.dtype(name)
    if dtype.kind not in "iu":
        raise InputError(
            f"{path}: its .bin file holds {name} values, and token ids are integers; give files "
            "that tools/preprocess_data.py or Megatron-LM wrote"
        )
    return dtype.newbyteorder("<")


def _check_size(path: Path, sequences: int, entries: int) -> None:
    size = path.stat().st_size
    arrays = sequences * (_LENGTH.itemsize + _OFFSET.itemsize) + entries * _OFFSET.itemsize
    expected = _HEADER.size + arrays
    if size == expected:
        return
    if sequences and size == expected + sequences:
        raise InputError(
            f"{path} has modes of a multimodal dataset behind its index; give one of text alone"
        )
    what = "is cut off" if size < expected else "is too long"
    raise InputError(
        f"{path} {what}: {size} bytes, and the {sequences} sequences and {entries} document "
        f"indices that its header names take {expected}; {WRITE_AGAIN}"
    )


def _blocks(array: numpy.ndarray) -> Iterator[tuple[int, numpy.ndarray]]:
    for start in range(0, len(array), _BLOCK):
        yield start, numpy.asarray(array[start : start + _BLOCK])
