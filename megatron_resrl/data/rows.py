"""Rows of question files: .jsonl, .json and .parquet, each row with where it stands."""

from __future__ import annotations

import gzip
import io
import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow
import pyarrow.parquet

from megatron_resrl.data.file_entries import KNOWN, kind_of
from megatron_resrl.errors import InputError

ABSENT = object()
"""What `find` returns for a key that a row does not have."""

_SHOWN_CHARACTERS = 60
"""Of a value in an error message."""
_EXAMPLE = '{"prompt": "...", "answer": "..."}'


def read_rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields the rows of a file, each with where it stands.

    Args:
        path: .jsonl (one object per line, blank lines are skipped), .json (a list of objects, or
            lines like .jsonl), either compressed with gzip or zstd, or .parquet.

    Raises:
        InputError: There is no such file, or it (its line, item or row is named) cannot be read.
    """
    kind = kind_of(path)
    if not path.is_file():
        raise InputError(f"there is no file {path}; relative paths start from {Path.cwd()}")
    if kind is None:
        raise InputError(
            f"{path}: unknown kind of file {path.suffix!r}; give a file that ends in {KNOWN}"
        )
    read = {".jsonl": _read_jsonl, ".json": _read_json, ".parquet": _read_parquet}[kind]
    try:
        yield from read(path)
    except (OSError, EOFError, zlib.error, pyarrow.ArrowException) as error:
        ending = "".join(path.suffixes[-2:]).lstrip(".")
        raise InputError(f"{path} is not a readable {ending} file: {error}") from error


def find(row: dict[str, Any], key: str) -> Any:
    """Looks a dotted key up; objects inside may be JSON text. `ABSENT` if there is none."""
    if key in row:
        return row[key]
    value: Any = row
    for name in key.split("."):
        value = parsed(value)
        if not isinstance(value, dict) or name not in value:
            return ABSENT
        value = value[name]
    return value


def first_found(row: dict[str, Any], keys: tuple[str, ...]) -> tuple[str, Any]:
    """The first key with a value that is not blank, otherwise the first that there is.

    Returns:
        The key and its value; ("", `ABSENT`) if the row has none of the keys.
    """
    values = [(key, value) for key in keys if (value := find(row, key)) is not ABSENT]
    filled = [(key, value) for key, value in values if not is_blank(value)]
    return (filled or values or [("", ABSENT)])[0]


def is_blank(value: Any) -> bool:
    """Whether there is nothing in it: null, not a number (a hole of pandas), blank text, or a list
    or object of nothing but such values."""
    if isinstance(value, str):
        return not value.strip()
    if isinstance(value, (list, tuple)):
        return all(map(is_blank, value))
    if isinstance(value, dict):
        return all(map(is_blank, value.values()))
    # Not a number is the one thing that differs from itself, also as a decimal.
    return value is None or (not isinstance(value, bool) and value != value)


def parsed(value: Any) -> Any:
    """Objects and lists that are JSON text; anything else as it is."""
    if isinstance(value, str) and value.lstrip().startswith(("{", "[")):
        try:
            return json.loads(value)
        except (ValueError, RecursionError):
            return value  # It is text that only begins like JSON.
    return value


def columns(row: dict[str, Any]) -> str:
    """All keys that `find` would find."""
    names = []
    for name, value in row.items():
        inner = parsed(value)
        names += [f"{name}.{key}" for key in inner] if isinstance(inner, dict) else [name]
    return ", ".join(names) or "none"


def check_text(value: Any, where: str) -> None:
    """Refuses text that has no UTF-8, anywhere in a value.

    Raises:
        InputError: It holds half of a surrogate pair, as text cut inside of a letter does.
    """
    if isinstance(value, str):
        try:
            value.encode("utf-8")
        except UnicodeEncodeError as error:
            near = value[max(0, error.start - 15) : error.end + 15]
            raise InputError(
                f"{where}: character {error.start} is half of a surrogate pair, near {near!a}, "
                "which no tokenizer reads; repair the text or leave the row out"
            ) from None
    elif isinstance(value, dict):
        for key, item in value.items():
            check_text(key, where)
            check_text(item, where)
    elif isinstance(value, (list, tuple)):
        for item in value:
            check_text(item, where)


def parsed_line(line: bytes, where: str, example: str = _EXAMPLE) -> dict[str, Any] | None:
    """The object on a line of a .jsonl file; None if the line is blank.

    Args:
        line: With or without its end.
        where: File and line, for messages.
        example: What a message shows of an object.

    Raises:
        InputError: It is anything else.
    """
    text = decoded(line, where).strip()
    return _object(_json(text, where), where, "one object per line", example) if text else None


def decoded(data: bytes, where: str) -> str:
    """UTF-8 as text, without the mark that some editors put first.

    Raises:
        InputError: It is not UTF-8.
    """
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{where}: it is not UTF-8 ({error})") from None


def decompressed(raw: BinaryIO, path: Path) -> BinaryIO | io.BufferedReader:
    """What an open file holds, decompressed if its name ends in .gz or .zst."""
    suffix = path.suffix.lower()
    if suffix == ".gz":
        return io.BufferedReader(gzip.GzipFile(fileobj=raw))
    if suffix == ".zst":
        stream = pyarrow.CompressedInputStream(pyarrow.PythonFile(raw, mode="r"), "zstd")
        return io.BufferedReader(stream)
    return raw


def kind_in_words(value: Any) -> str:
    """The kind of a JSON value."""
    names = {dict: "JSON object", list: "list", str: "text", bool: "truth value"}
    return "null" if value is None else names.get(type(value), type(value).__name__)


def shortened(value: Any) -> str:
    """A value for a message."""
    text = repr(value)
    return text if len(text) <= _SHOWN_CHARACTERS else f"{text[:_SHOWN_CHARACTERS]}..."


def _read_jsonl(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    with path.open("rb") as raw:
        # Lines end at \n alone: JSON text may hold what else ends lines, U+2028 for one.
        for number, line in enumerate(decompressed(raw, path), start=1):
            where = f"{path}, line {number}"
            if (row := parsed_line(line, where)) is not None:
                yield where, row


def _read_json(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    with path.open("rb") as raw:
        content = decompressed(raw, path).read()
    text = decoded(content, str(path)).strip()
    if not text.startswith("["):
        try:
            json.loads(text)
        except json.JSONDecodeError as error:
            if error.msg == "Extra data":  # Lines of JSON are often named so, too.
                yield from _read_jsonl(path)
                return
        except RecursionError:
            pass  # Said below.
        if not text:
            return
    rows = _json(text, str(path))
    for number, row in enumerate(rows if isinstance(rows, list) else [rows]):
        where = f"{path}, item {number}"
        yield where, _object(row, where, "a list of objects")


def _json(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        near = text[max(0, error.pos - 30) : error.pos + 30]
        line = f"line {error.lineno}, " if error.lineno > 1 else ""
        raise InputError(
            f"{where}: it is not JSON, {error.msg} at {line}column {error.colno}, near {near!r}"
        ) from None
    except (ValueError, RecursionError) as error:  # Endless numbers, endless nesting.
        raise InputError(f"{where}: its JSON cannot be read ({error})") from None


def _object(row: Any, where: str, right: str, example: str = _EXAMPLE) -> dict[str, Any]:
    if not isinstance(row, dict):
        raise InputError(f"{where}: it is a {kind_in_words(row)}; give {right}, e.g. {example}")
    return row


def _read_parquet(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    number = 0
    with pyarrow.parquet.ParquetFile(path) as file:
        for batch in file.iter_batches(batch_size=1024):
            try:
                rows = batch.to_pylist()
            # What Python has no value for: dates before year 1, text that is not UTF-8.
            except (ValueError, OverflowError, KeyError) as error:
                last = number + len(batch) - 1
                raise InputError(f"{path}, rows {number} to {last}: {error}") from error
            for row in rows:
                yield f"{path}, row {number}", row
                number += 1
