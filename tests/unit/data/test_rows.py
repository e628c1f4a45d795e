"""Kinds of question files: the same rows out of each, and what is said about damaged ones."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
from questions import load_prompts

from megatron_resrl.data.rows import read_rows
from megatron_resrl.errors import InputError

# What some readers take for the end of a line, and JSON does not escape.
BREAKS = "a\u2028b\u2029c\u0085d\u000be\u000cf\u001cg"
ROWS = [{"prompt": BREAKS, "answer": "1"}, {"prompt": "2+2?", "answer": BREAKS}]
LINES = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS).encode()
LIST = json.dumps(ROWS, ensure_ascii=False, indent=1).encode()


def zstd(data: bytes) -> bytes:
    sink = pyarrow.BufferOutputStream()
    with pyarrow.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(data)
    return sink.getvalue().to_pybytes()


KINDS: dict[str, bytes] = {
    "a.jsonl": LINES,
    "a.JSONL": LINES,
    "a.json": LIST,
    "bom.json": b"\xef\xbb\xbf" + LIST,
    "lines.json": LINES,
    "a.jsonl.gz": gzip.compress(LINES),
    "two.jsonl.gz": b"".join(gzip.compress(line + b"\n") for line in LINES.splitlines()),
    "a.json.gz": gzip.compress(LIST),
    "lines.json.gz": gzip.compress(LINES),
    "a.jsonl.zst": zstd(LINES),
    "a.json.zst": zstd(LIST),
}


@pytest.mark.parametrize("name", KINDS)
def test_read_rows_reads_every_kind_of_file(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(KINDS[name])
    assert [row for _, row in read_rows(path)] == ROWS


def test_read_rows_reads_the_same_rows_from_parquet(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), path)
    assert [row for _, row in read_rows(path)] == ROWS


def test_read_rows_takes_one_json_object_for_one_row(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text(json.dumps(ROWS[0], indent=2))
    assert [row for _, row in read_rows(path)] == ROWS[:1]


def test_read_rows_names_rows_of_a_list_by_number(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text('[{"prompt": "?", "answer": 1}, {"prompt": 3, "answer": 1}]')
    with pytest.raises(InputError, match=r"a\.json, item 1, prompt: it is a int, 3"):
        load_prompts(path)


@pytest.mark.parametrize(
    ("name", "damage", "said"),
    [
        ("a.jsonl.gz", lambda data: data[: len(data) // 2], "is not a readable jsonl.gz file"),
        ("a.jsonl.gz", lambda data: b"plain", "is not a readable jsonl.gz file: Not a gzipped"),
        ("a.jsonl.gz", lambda data: data[:-6] + b"\0" * 6, "is not a readable jsonl.gz file"),
        ("a.jsonl.zst", lambda data: b"plain text", "is not a readable jsonl.zst file"),
        ("a.json", lambda data: data[:-3], "it is not JSON, "),
        ("a.json", lambda data: b"3", "item 0: it is a int; give a list of objects"),
        ("a.json", lambda data: b"[" * 100_000, "its JSON cannot be read"),
        ("a.jsonl", lambda data: b'{"prompt": ' + b"[" * 100_000, "its JSON cannot be read"),
        ("a.jsonl", lambda data: b'{"answer": ' + b"1" * 5000 + b"}", "its JSON cannot be read"),
        ("a.json", lambda data: data.decode().encode("utf-16"), "it is not UTF-8"),
    ],
)
def test_read_rows_names_damaged_files(
    tmp_path: Path, name: str, damage: Callable[[bytes], bytes], said: str
) -> None:
    path = tmp_path / name
    path.write_bytes(damage(KINDS[name]))
    with pytest.raises(InputError) as caught:
        list(read_rows(path))
    assert str(caught.value).startswith(str(path))
    assert said in str(caught.value)


def test_read_rows_names_a_truncated_parquet_file(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS * 1000), path)
    whole = path.read_bytes()
    path.write_bytes(whole[:100] + bytes(len(whole) - 200) + whole[-100:])
    with pytest.raises(InputError, match="is not a readable parquet file"):
        list(read_rows(path))


def test_read_records_keeps_the_name_of_compressed_files(tmp_path: Path) -> None:
    path = tmp_path / "sums.jsonl.gz"
    path.write_bytes(KINDS["a.jsonl.gz"])
    assert {record.data_source for record in load_prompts(path)} == {"sums"}
