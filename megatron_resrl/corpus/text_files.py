"""Files of text, read as shards: pieces of a few megabytes that end where a document ends."""

from __future__ import annotations

import contextlib
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal

import pyarrow
import pyarrow.parquet

from megatron_resrl.data.file_entries import expanded
from megatron_resrl.data.rows import (
    ABSENT,
    check_text,
    columns,
    decoded,
    decompressed,
    find,
    kind_in_words,
    parsed_line,
)
from megatron_resrl.errors import InputError

TextDocuments = Literal["file", "line", "blank_line"]
"""What is one document of a text file: all of it, each line, or what stands between blank lines."""

SHARD_BYTES = 4 << 20
"""Of text in a shard, about."""
_BATCH_ROWS = 1024

_ENDINGS = {".jsonl": "jsonl", ".json": "jsonl", ".txt": "text", ".md": "text"}
_COMPRESSIONS = (".gz", ".zst")
KNOWN = ".parquet, .jsonl, .json (an object per line), .txt or .md, which may be .gz or .zst"


@dataclass(frozen=True)
class Position:
    """Where a shard begins."""

    file: int = 0
    """Number of the file."""
    offset: int = 0
    """Bytes of its text, decompressed, before the shard; 0 for parquet."""
    record: int = 0
    """Lines or rows before the shard."""


@dataclass(frozen=True)
class Shard:
    """Some documents in their order, not parsed yet."""

    path: Path
    kind: str
    """`jsonl`, `parquet`, or one of `TextDocuments`."""
    content: bytes
    """Lines; for parquet the column as an Arrow stream; for `file` nothing."""
    begin: Position
    after: Position
    """Where the next shard begins."""
    disk_bytes: int
    """What has been read of all files, in bytes on disk."""
    files: tuple[tuple[Path, bytes], ...] = ()
    """Whole files, for the kind `file`."""


def kind_of(path: str | Path) -> str | None:
    """`jsonl`, `text` or `parquet` as the file's name says; None: unknown."""
    name = Path(path).name.lower()
    if name.endswith(".parquet"):
        return "parquet"
    for compression in _COMPRESSIONS:
        name = name.removesuffix(compression)
    return _ENDINGS.get(Path(name).suffix)


def text_files(inputs: Sequence[str]) -> list[Path]:
    """The files that `--input` names, in its order; those of a folder or pattern sorted.

    Raises:
        InputError: There is no such file, its kind is unknown, or a file is named twice.
    """
    found: list[Path] = []
    for given in inputs:
        files = [Path(each) for each in expanded(given, kind_of)]
        if not files:
            raise InputError(f"--input {given} names no file that ends in {KNOWN}")
        for file in files:
            if not file.is_file():
                raise InputError(
                    f"--input {given}: there is no such file; relative ones start from {Path.cwd()}"
                )
            if kind_of(file) is None:
                raise InputError(
                    f"--input {file}: unknown kind of file {file.suffix!r}; give {KNOWN}"
                )
        found += files
    if not found:
        raise InputError(f"--input is empty; give files that end in {KNOWN}")
    if twice := [str(each) for each in dict.fromkeys(found) if found.count(each) > 1]:
        raise InputError(f"--input names {twice[0]} twice; name each file once")
    return found


def read_shards(
    files: Sequence[Path],
    text_key: str,
    text_documents: TextDocuments,
    start: Position = Position(),
) -> Iterator[Shard]:
    """Yields all text from `start` on.

    Args:
        files: As `text_files` returns them.
        text_key: Column of a parquet file; `a.b` is field b of column a.
        text_documents: What is one document of a text file.
        start: A shard's `after`.

    Raises:
        InputError: A file is damaged or lacks the column.
    """
    disk_bytes = sum(file.stat().st_size for file in files[: start.file])
    waiting: list[tuple[Path, bytes]] = []
    first = start
    for number in range(start.file, len(files)):
        path, begin = files[number], start if number == start.file else Position(number)
        kind = _layout(path, text_documents)
        with _damage_named(path), path.open("rb") as raw:
            if kind == "file":
                # Small files share a shard.
                first = first if waiting else begin
                waiting.append((path, decompressed(raw, path).read()))
            elif kind == "parquet":
                yield from _parquet_shards(path, raw, text_key, begin, disk_bytes)
            else:
                yield from _line_shards(path, raw, kind, begin, disk_bytes)
        disk_bytes += path.stat().st_size
        following = _layout(files[number + 1], text_documents) if number + 1 < len(files) else ""
        full = sum(len(content) for _, content in waiting) >= SHARD_BYTES
        if waiting and (full or following != "file"):
            after = Position(number + 1)
            yield Shard(path, "file", b"", first, after, disk_bytes, tuple(waiting))
            waiting = []


def read_texts(
    shard: Shard, text_key: str, unreadable: Callable[[InputError], None]
) -> Iterator[tuple[str, str]]:
    """Yields the documents of a shard, each with where it stands; a document may be empty.

    Args:
        shard: From `read_shards`.
        text_key: Column of the text; `a.b` is field b of column a, an object or JSON text.
        unreadable: Called with what is wrong with a document, which is then left out.
    """
    parse = _PARSERS[shard.kind]
    for where, piece in _PIECES[shard.kind](shard):
        try:
            text = parse(piece, where, text_key)
            check_text(text, where)
        except InputError as error:
            unreadable(error)
            continue
        if text is not None:
            yield where, text


def _layout(path: Path, text_documents: TextDocuments) -> str:
    kind = kind_of(path) or ""
    return text_documents if kind == "text" else kind


@contextlib.contextmanager
def _damage_named(path: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, EOFError, zlib.error, pyarrow.ArrowException) as error:
        ending = "".join(path.suffixes[-2:]).lstrip(".")
        raise InputError(f"{path} is not a readable {ending} file: {error}") from error


def _line_shards(
    path: Path, raw: BinaryIO, kind: str, begin: Position, disk_bytes: int
) -> Iterator[Shard]:
    stream = decompressed(raw, path)
    _skip(stream, begin.offset)
    while block := stream.read(SHARD_BYTES):
        content = block if block.endswith(b"\n") else block + stream.readline()
        if kind == "blank_line":
            content += _up_to_a_blank_line(content, stream)
        after = Position(
            begin.file, begin.offset + len(content), begin.record + content.count(b"\n")
        )
        yield Shard(path, kind, content, begin, after, disk_bytes + raw.tell())
        begin = after


def _up_to_a_blank_line(content: bytes, stream: Any) -> bytes:
    """The lines that belong to the last paragraph of `content`, and the blank line behind it."""
    lines = []
    last = content.removesuffix(b"\n").rpartition(b"\n")[2]
    while last.strip():
        last = stream.readline()
        lines.append(last)
    return b"".join(lines)


def _skip(stream: Any, size: int) -> None:
    """Moves on by `size` bytes; what is compressed has to be read for that."""
    if size and stream.seekable():
        stream.seek(size)
        return
    while size and (block := stream.read(min(size, SHARD_BYTES))):
        size -= len(block)


def _parquet_shards(
    path: Path, raw: BinaryIO, text_key: str, begin: Position, disk_bytes: int
) -> Iterator[Shard]:
    file = pyarrow.parquet.ParquetFile(raw)
    names = file.schema_arrow.names
    column = text_key if text_key in names else text_key.split(".")[0]
    if column not in names:
        raise InputError(
            f"{path} has no column {column!r}; give one of {', '.join(names)} as --text_key"
        )
    size, rows = path.stat().st_size, max(file.metadata.num_rows, 1)
    groups, skipped = _row_groups(file.metadata, begin.record)
    waiting: list[pyarrow.RecordBatch] = []
    record = begin.record - skipped
    for batch in file.iter_batches(_BATCH_ROWS, row_groups=groups, columns=[column]):
        record += len(batch)
        fresh = batch.slice(min(skipped, len(batch)))
        skipped -= len(batch) - len(fresh)
        waiting.append(fresh)
        if record == file.metadata.num_rows or sum(map(_size, waiting)) >= SHARD_BYTES:
            after = Position(begin.file, 0, record)
            read = disk_bytes + size * record // rows
            yield Shard(path, "parquet", _as_stream(waiting), begin, after, read)
            waiting, begin = [], after


def _row_groups(metadata: Any, rows: int) -> tuple[list[int], int]:
    """Row groups from the one that holds row `rows` on, and how many rows before it they hold."""
    before = 0
    for group in range(metadata.num_row_groups):
        inside = metadata.row_group(group).num_rows
        if before + inside > rows:
            return list(range(group, metadata.num_row_groups)), rows - before
        before += inside
    return [], 0


def _size(batch: pyarrow.RecordBatch) -> int:
    return batch.get_total_buffer_size() if len(batch) else 0


def _as_stream(batches: Sequence[pyarrow.RecordBatch]) -> bytes:
    """Only what the batches hold, not the buffers that they are slices of."""
    sink = pyarrow.BufferOutputStream()
    with pyarrow.ipc.new_stream(sink, batches[0].schema) as writer:
        for batch in batches:
            writer.write_batch(batch)
    return sink.getvalue().to_pybytes()


def _lines(shard: Shard) -> Iterator[tuple[str, bytes]]:
    lines = shard.content.removesuffix(b"\n").split(b"\n")
    for number, line in enumerate(lines, start=shard.begin.record + 1):
        yield f"{shard.path}, line {number}", line.removesuffix(b"\r")


def _paragraphs(shard: Shard) -> Iterator[tuple[str, bytes]]:
    """What stands between blank lines, or lines of white space."""
    lines: list[bytes] = []
    first = 0
    ended = (*shard.content.split(b"\n"), b"")
    for number, line in enumerate(ended, start=shard.begin.record + 1):
        if line.strip():
            first = first if lines else number
            lines.append(line)
        elif lines:
            yield f"{shard.path}, line {first}", b"\n".join(lines).removesuffix(b"\r")
            lines = []


def _rows(shard: Shard) -> Iterator[tuple[str, tuple[str, pyarrow.Scalar]]]:
    table = pyarrow.ipc.open_stream(shard.content).read_all()
    (name,) = table.column_names
    for number, value in enumerate(table.column(0), start=shard.begin.record):
        yield f"{shard.path}, row {number}", (name, value)


def _text_of_line(line: bytes, where: str, text_key: str) -> str | None:
    row = parsed_line(line, where, f'{{"{text_key}": "..."}}')
    return None if row is None else _text(row, where, text_key)


def _text_of_row(cell: tuple[str, pyarrow.Scalar], where: str, text_key: str) -> str:
    name, value = cell
    try:
        return _text({name: value.as_py()}, where, text_key)
    # What Python has no value for: text that is not UTF-8, dates before year 1.
    except (ValueError, OverflowError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{where}: it cannot be read ({error})") from error


def _text(row: dict[str, Any], where: str, text_key: str) -> str:
    value = find(row, text_key)
    if value is ABSENT:
        raise InputError(
            f"{where}: there is no {text_key!r}; give one of {columns(row)} as --text_key"
        )
    if not isinstance(value, str):
        raise InputError(f"{where}: {text_key!r} is {kind_in_words(value)}; it must be a text")
    return value


def _plain(content: bytes, where: str, text_key: str) -> str:
    return decoded(content, where)


_PIECES: dict[str, Callable[[Shard], Iterator[tuple[str, Any]]]] = {
    "jsonl": _lines,
    "parquet": _rows,
    "line": _lines,
    "blank_line": _paragraphs,
    "file": lambda shard: ((str(path), content) for path, content in shard.files),
}
"""Documents of a shard, each with where it stands."""

_PARSERS: dict[str, Callable[[Any, str, str], str | None]] = {
    "jsonl": _text_of_line,
    "parquet": _text_of_row,
    "line": _plain,
    "blank_line": _plain,
    "file": _plain,
}
"""The text of a document, out of what stands in the file; None: there is no document."""
