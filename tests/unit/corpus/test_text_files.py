"""Documents out of files of text: the same ones wherever shards end, and what cannot be read."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st
from token_files import zstd

from megatron_resrl.corpus import text_files as module
from megatron_resrl.corpus.text_files import Position, read_shards, read_texts, text_files
from megatron_resrl.errors import InputError

TEXTS = ["first", "", "two\nlines\r\n", "x" * 300, " \u2028 \x85 \ufeff", "last\x00"]


def raising(error: InputError) -> None:
    raise error


def texts_of(
    paths: list[Path],
    documents: str = "file",
    *,
    key: str = "text",
    unreadable: Callable[[InputError], None] = raising,
    start: Position = Position(),  # noqa: B008
) -> list[str]:
    return [
        text
        for shard in read_shards(paths, key, documents, start)
        for _, text in read_texts(shard, key, unreadable)
    ]


def jsonl(texts: list[str], key: str = "text") -> bytes:
    return b"".join(json.dumps({key: text, "n": 1}).encode() + b"\n" for text in texts)


def write_parquet(path: Path, texts: list[str], group: int) -> Path:
    table = pyarrow.Table.from_pylist([{"n": 1, "text": text} for text in texts])
    pyarrow.parquet.write_table(table, path, row_group_size=group)
    return path


def write_all_kinds(folder: Path, texts: list[str]) -> list[Path]:
    lines = jsonl(texts)
    contents = {
        "a.jsonl": lines,
        "no_end.json": lines[:-1],
        "blank.jsonl": lines.replace(b"\n", b"\r\n\n \n"),
        "a.jsonl.gz": gzip.compress(lines),
        "members.jsonl.gz": b"".join(map(gzip.compress, lines.splitlines(keepends=True))),
        "a.json.zst": zstd(lines),
    }
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    parquet = write_parquet(folder / "a.parquet", texts, group=2)
    return [*(folder / name for name in contents), parquet]


@given(
    texts=st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=40), min_size=1),
    size=st.integers(1, 200),
)
def test_read_texts_finds_all_text_whatever_a_shard_holds(
    tmp_path_factory: pytest.TempPathFactory, texts: list[str], size: int
) -> None:
    paths = write_all_kinds(tmp_path_factory.mktemp("files"), texts)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(module, "SHARD_BYTES", size)
        for path in paths:
            assert texts_of([path]) == texts, path.name
        shards = list(read_shards(paths, "text", "file"))
        # Reading goes on behind any shard, as after an interruption.
        after = shards[len(shards) // 2].after
        done = sum(
            len(list(read_texts(s, "text", raising))) for s in shards[: len(shards) // 2 + 1]
        )
        assert texts_of(paths, start=after) == (texts * len(paths))[done:]


@pytest.mark.parametrize("size", [1, 7, 1 << 20])
@pytest.mark.parametrize("pack", [bytes, gzip.compress, zstd])
def test_read_texts_divides_text_as_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int, pack: Callable[[bytes], bytes]
) -> None:
    monkeypatch.setattr(module, "SHARD_BYTES", size)
    ending = {bytes: "", gzip.compress: ".gz", zstd: ".zst"}[pack]
    content = b"\n \n\none\r\ntwo\r\n\r\n \n  three\n\n\nfour"
    path = tmp_path / f"a.txt{ending}"
    path.write_bytes(pack(content))
    assert texts_of([path]) == [content.decode()]
    assert texts_of([path], "blank_line") == ["one\r\ntwo", "  three", "four"]
    lines = ["", " ", "", "one", "two", "", " ", "  three", "", "", "four"]
    assert texts_of([path], "line") == lines


def test_read_shards_puts_small_text_files_together(tmp_path: Path) -> None:
    for number in range(5):
        (tmp_path / f"{number}.txt").write_text(str(number))
    (tmp_path / "2.jsonl").write_bytes(jsonl(["json"]))
    paths = sorted(tmp_path.iterdir())
    shards = list(read_shards(paths, "text", "file"))
    assert [shard.kind for shard in shards] == ["file", "jsonl", "file"]
    assert texts_of(paths) == ["0", "1", "json", "2", "3", "4"]
    assert texts_of(paths, start=shards[1].after) == ["2", "3", "4"]


def test_read_texts_names_lines_and_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SHARD_BYTES", 30)
    for path in write_all_kinds(tmp_path, TEXTS):
        shards = read_shards([path], "text", "file")
        places = [where for shard in shards for where, _ in read_texts(shard, "text", raising)]
        if path.name == "blank.jsonl":
            expected = [f"{path}, line {3 * number + 1}" for number in range(len(TEXTS))]
        elif path.suffix == ".parquet":
            expected = [f"{path}, row {number}" for number in range(len(TEXTS))]
        else:
            expected = [f"{path}, line {number + 1}" for number in range(len(TEXTS))]
        assert places == expected


def test_read_texts_finds_nested_text(tmp_path: Path) -> None:
    rows = [{"doc": {"body": "a"}}, {"doc": {"body": "b"}}]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "b.parquet")
    paths = [tmp_path / "a.jsonl", tmp_path / "b.parquet"]
    assert texts_of(paths, key="doc.body") == ["a", "b", "a", "b"]


UNREADABLE = {
    b'{"text": 3}': "line 2: 'text' is int; it must be a text",
    b'{"txt": "a"}': "line 2: there is no 'text'; give one of txt as --text_key",
    b'["a"]': r"""line 2: it is a list; give one object per line, e.g. {"text": "..."}""",
    b'{"text": "a"': "line 2: it is not JSON",
    b'{"text": "\xff"}': "line 2: it is not UTF-8",
    rb'{"text": "\ud800"}': "line 2: character 0 is half of a surrogate pair",
}


@pytest.mark.parametrize("line", UNREADABLE)
def test_read_texts_says_what_cannot_be_read(tmp_path: Path, line: bytes) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"\n".join([*jsonl(["a"]).splitlines(), line, *jsonl(["b"]).splitlines()]))
    problems: list[str] = []
    assert texts_of([path], unreadable=lambda error: problems.append(str(error))) == ["a", "b"]
    assert len(problems) == 1
    assert UNREADABLE[line] in problems[0]


def test_read_texts_says_which_row_is_no_text(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"text": ["a", None, "b"]}), path)
    problems: list[str] = []
    assert texts_of([path], unreadable=lambda error: problems.append(str(error))) == ["a", "b"]
    assert problems == [f"{path}, row 1: 'text' is null; it must be a text"]


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.json.zst", "a.parquet"])
def test_read_shards_names_damaged_files(tmp_path: Path, name: str) -> None:
    texts = [f"{number * number} text" for number in range(2000)]
    write_all_kinds(tmp_path, texts)
    path = tmp_path / name
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(InputError, match=f"{name} is not a readable .* file"):
        texts_of([path])


def test_read_shards_names_a_missing_column(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "a.parquet", ["a"], 1)
    with pytest.raises(InputError, match="no column 'body'; give one of n, text as --text_key"):
        texts_of([path], key="body")


def test_text_files_takes_files_folders_and_patterns(tmp_path: Path) -> None:
    names = ["b.jsonl", "a.txt", "c.parquet", "d.csv", "more/e.jsonl.zst"]
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("")

    def found(*inputs: str) -> list[str]:
        paths = text_files([str(tmp_path / each) for each in inputs])
        return [str(path.relative_to(tmp_path)) for path in paths]

    assert found("") == ["a.txt", "b.jsonl", "c.parquet"]
    assert found("c.parquet", "**/*.zst") == ["c.parquet", "more/e.jsonl.zst"]
    for wrong, message in {
        "none.txt": "there is no such file",
        "d.csv": r"unknown kind of file '\.csv'; give \.parquet",
        "*.csv": "names no file that ends in",
    }.items():
        with pytest.raises(InputError, match=message):
            found(wrong)
    with pytest.raises(InputError, match=r"b\.jsonl twice"):
        found("b.jsonl", "*.jsonl")
    with pytest.raises(InputError, match="--input is empty"):
        found()
