"""Token files that can be trained on, and what is said of those that cannot."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path

import numpy
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from megatron.core.datasets.indexed_dataset import DType, IndexedDatasetBuilder
from token_files import build

from megatron_resrl.corpus import dataset, index_file
from megatron_resrl.corpus.dataset import DatasetFacts, check_indexed_dataset
from megatron_resrl.corpus.index_file import read_index, write_index
from megatron_resrl.errors import InputError

DOCUMENTS = [[5, 6, 7], [8], [9, 10, 11, 12], [13, 14]]
HEADER = 34


def patch(path: Path, offset: int, content: bytes) -> None:
    data = bytearray(path.read_bytes())
    data[offset : offset + len(content)] = content
    path.write_bytes(data)


def cut(path: Path, size: int) -> None:
    path.write_bytes(path.read_bytes()[:size])


def test_check_dataset_reads_what_megatron_core_writes(tmp_path: Path) -> None:
    narrow = check_indexed_dataset(build(tmp_path / "a", DOCUMENTS, 100), 100)
    assert narrow == DatasetFacts(4, 4, 10, 4, "uint16", 0, 10)
    wide = check_indexed_dataset(build(tmp_path / "b", DOCUMENTS, 100_000, split=1), 100_000)
    assert wide.dtype == "int32"


def test_check_dataset_reads_documents_of_several_sequences(tmp_path: Path) -> None:
    build(tmp_path / "a", [range(10), range(20)], 100, split=3)
    facts = check_indexed_dataset(tmp_path / "a", 20)
    assert (facts.documents, facts.sequences, facts.tokens, facts.longest) == (2, 6, 30, 7)


DAMAGES: dict[str, tuple[Callable[[Path, Path], object], str]] = {
    "no index": (lambda tokens, index: index.unlink(), "there is no file .*a.idx"),
    "no tokens": (lambda tokens, index: tokens.unlink(), "there is no file .*a.bin"),
    "magic": (lambda tokens, index: patch(index, 0, b"PK"), "begins with b'PKIDIDX"),
    "empty index": (lambda tokens, index: cut(index, 0), "begins with b''"),
    "header": (lambda tokens, index: cut(index, 20), "cut off: 20 bytes, and the header"),
    "version": (lambda tokens, index: patch(index, 9, b"\x02"), "has version 2"),
    "code": (lambda tokens, index: patch(index, 17, b"\x63"), "type code 99 is none of 1, 2"),
    "floats": (lambda tokens, index: patch(index, 17, b"\x07"), "holds float32 values"),
    "index": (lambda tokens, index: cut(index, 100), "cut off: 100 bytes, and the 4 sequences"),
    "long index": (
        lambda tokens, index: index.write_bytes(index.read_bytes() + b"more"),
        "has modes of a multimodal dataset",
    ),
    "longer index": (
        lambda tokens, index: index.write_bytes(index.read_bytes() + b"abc"),
        "is too long: 125 bytes",
    ),
    "length": (
        lambda tokens, index: patch(index, HEADER + 4, struct.pack("<i", 2)),
        "sequence 2, of document 2, has 4 tokens from byte 8 on, which does not follow",
    ),
    "negative length": (
        lambda tokens, index: patch(index, HEADER + 12, struct.pack("<i", -2)),
        "sequence 3, of document 3, has -2 tokens",
    ),
    "pointer": (
        lambda tokens, index: patch(index, HEADER + 16 + 8, struct.pack("<q", 7)),
        "sequence 1, of document 1, has 1 tokens from byte 7 on",
    ),
    "document": (
        lambda tokens, index: patch(index, HEADER + 48 + 16, struct.pack("<q", 0)),
        "document 2 begins at sequence 0 of 4",
    ),
    "first document": (
        lambda tokens, index: patch(index, HEADER + 48, struct.pack("<q", 1)),
        "document 0 begins at sequence 1 of 4",
    ),
    "last document": (
        lambda tokens, index: patch(index, HEADER + 48 + 32, struct.pack("<q", 3)),
        "its last document ends at sequence 3, and there are 4",
    ),
    "short tokens": (
        lambda tokens, index: cut(tokens, 9),
        "a.bin is cut off in document 2 of 4: 9 bytes, and a.idx describes 20",
    ),
    "long tokens": (
        lambda tokens, index: tokens.write_bytes(bytes(22)),
        "a.bin is not the file that a.idx describes: 22 bytes instead of 20",
    ),
    "token id": (
        lambda tokens, index: patch(tokens, 2 * 5, struct.pack("<H", 20)),
        r"document 2 holds the token id 20, and the vocabulary has 20 tokens \(0 to 19\)",
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_check_dataset_names_damage(tmp_path: Path, damage: str) -> None:
    build(tmp_path / "a", DOCUMENTS, 100)
    make, message = DAMAGES[damage]
    make(tmp_path / "a.bin", tmp_path / "a.idx")
    with pytest.raises(InputError, match=message) as error:
        check_indexed_dataset(tmp_path / "a", 20)
    assert "\n" not in str(error.value)
    assert "; " in str(error.value)  # What is wrong, and what would be right.


def test_check_dataset_refuses_negative_token_ids(tmp_path: Path) -> None:
    build(tmp_path / "a", [[1, 2], [3, -1]], 100_000)
    with pytest.raises(InputError, match="document 1 holds the token id -1"):
        check_indexed_dataset(tmp_path / "a", 100_000)


def test_check_dataset_refuses_a_dataset_of_nothing(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no documents"):
        check_indexed_dataset(build(tmp_path / "a", [], 100), 100)


@pytest.mark.parametrize(
    "documents", [[[], [1], [2, 3]], [[1], [], [2, 3]], [[1], [2, 3], []], [[], []]]
)
def test_check_dataset_finds_empty_documents(tmp_path: Path, documents: list[list[int]]) -> None:
    # As Megatron-LM writes empty text: a document without sequences; and as a sequence of length 0.
    builder = IndexedDatasetBuilder(f"{tmp_path / 'a'}.bin", dtype=DType.optimal_dtype(100))
    for document in [[7], *documents]:
        builder.add_document(document, [len(document)] if document else [])
    builder.finalize(f"{tmp_path / 'a'}.idx")
    empty = [number for number, document in enumerate([[7], *documents]) if not document]
    for prefix in (tmp_path / "a", build(tmp_path / "b", [[7], *documents], 100)):
        with pytest.raises(InputError, match=f"{len(empty)} of .* document {empty[0]}"):
            check_indexed_dataset(prefix, 100)
        assert check_indexed_dataset(prefix, 100, allow_empty=True).empty_documents == len(empty)


def test_check_dataset_says_which_prefix_was_meant(tmp_path: Path) -> None:
    build(tmp_path / "a_text_document", DOCUMENTS, 100)
    with pytest.raises(InputError, match=r"did you mean .*a_text_document\?"):
        check_indexed_dataset(tmp_path / "a", 100)
    with pytest.raises(InputError, match=r"give .*a_text_document, without \.idx"):
        check_indexed_dataset(f"{tmp_path / 'a_text_document'}.idx", 100)


def test_check_dataset_looks_at_edges_and_windows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dataset, "_WINDOWS", 4)
    monkeypatch.setattr(dataset, "_WINDOW", 8)
    monkeypatch.setattr(dataset, "_EDGE", 16)
    pieces = list(dataset._pieces(1000, whole=False))
    assert pieces == [(0, 16), (16, 24), (336, 344), (656, 664), (976, 984), (984, 1000)]
    ids = numpy.zeros(1000, dtype=int)
    ids[340], ids[700] = 99, 98
    build(tmp_path / "a", ids.reshape(10, 100), 100)
    with pytest.raises(InputError, match="document 3 holds the token id 99"):
        check_indexed_dataset(tmp_path / "a", 99)
    ids[340] = 0
    build(tmp_path / "a", ids.reshape(10, 100), 100)
    assert check_indexed_dataset(tmp_path / "a", 98).ids_read == 64  # The other id lies between.
    with pytest.raises(InputError, match="document 7 holds the token id 98"):
        check_indexed_dataset(tmp_path / "a", 98, whole=True)


@settings(max_examples=30, deadline=None)
@given(lengths=st.lists(st.integers(0, 6), min_size=1), block=st.integers(1, 5))
def test_index_file_is_that_of_megatron_core(
    tmp_path_factory: pytest.TempPathFactory, lengths: list[int], block: int
) -> None:
    folder = tmp_path_factory.mktemp("index")
    build(folder / "a", [[1] * length for length in lengths], 100)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(index_file, "_BLOCK", block)
        write_index(folder / "b.idx", numpy.uint16, numpy.array(lengths, dtype=numpy.int32))
        assert (folder / "b.idx").read_bytes() == (folder / "a.idx").read_bytes()
        index = read_index(folder / "a.idx")
        index_file.check_arrays(index)
        empty = [number for number, length in enumerate(lengths) if length == 0]
        assert list(index_file.empty_documents(index)) == empty
