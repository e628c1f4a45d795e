"""Files with the graded responses to a set: JSON lines, or Parquet with the same records."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from megatron_resrl.data.rows import read_rows
from megatron_resrl.errors import InputError
from megatron_resrl.observe.json_lines import json_line

FUNCTIONS = "functions"
"""Of a response that several reward functions judge: the score by each."""
_RESPONSE = pa.struct(
    [
        ("response", pa.string()),
        ("score", pa.float64()),
        ("timed_out", pa.bool_()),
        ("finish_reason", pa.string()),
        ("tokens", pa.int64()),
        ("answer", pa.string()),
        ("transcript", pa.string()),
        (FUNCTIONS, pa.map_(pa.string(), pa.float64())),
    ]
)
SCHEMA = pa.schema(
    [
        ("step", pa.int64()),
        ("row", pa.int64()),
        ("question", pa.string()),
        ("ground_truth", pa.string()),
        ("responses", pa.list_(_RESPONSE)),
    ]
)
"""One row for each question; what a record does not have is null."""


def write_responses(path: Path, records: Iterable[dict[str, Any]]) -> None:
    """Writes records of questions, see docs/evaluation.md; the ending of the path says how."""
    if path.suffix == ".parquet":
        rows = [_without_surrogates(record) for record in records]
        pq.write_table(pa.Table.from_pylist(rows, schema=SCHEMA), path, compression="zstd")
        return
    with path.open("w", encoding="utf-8", errors="backslashreplace", newline="\n") as file:
        for record in records:
            file.write(json_line(record))


def read_responses(path: Path) -> list[dict[str, Any]]:
    """The records of a file of either kind.

    Raises:
        InputError: It cannot be read, or holds something else.
    """
    records = []
    for where, record in read_rows(path):
        if not isinstance(record.get("responses"), list) or "row" not in record:
            raise InputError(f"{where}: it is no question with responses of an evaluation")
        responses = [
            {
                name: dict(value) if name == FUNCTIONS else value  # Parquet has pairs.
                for name, value in each.items()
                if value is not None
            }
            for each in record["responses"]
        ]
        records.append(record | {"responses": responses})
    return records


def _without_surrogates(value: Any) -> Any:
    """Half of a surrogate pair, which Arrow has no text for, in letters as in JSON lines."""
    if isinstance(value, str):
        return value.encode("utf-8", errors="backslashreplace").decode("utf-8")
    if isinstance(value, dict):
        return {name: _without_surrogates(each) for name, each in value.items()}
    return [_without_surrogates(each) for each in value] if isinstance(value, list) else value
