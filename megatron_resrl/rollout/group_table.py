"""Groups of responses as rows of a Parquet file: the one format of the log and of recordings."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from megatron_resrl.rollout.engine import Opening, Response

SCHEMA = pa.schema(
    [
        ("round", pa.int32()),
        ("index", pa.int32()),
        ("group", pa.int32()),
        ("sample", pa.int32()),
        ("prompt_ids", pa.list_(pa.int32())),
        ("token_ids", pa.list_(pa.int32())),
        ("log_probs", pa.list_(pa.float64())),
        ("finish_reason", pa.string()),
        ("response_mask", pa.list_(pa.bool_())),
        ("first_version", pa.int64()),
        ("last_version", pa.int64()),
        ("score", pa.float64()),
        ("graded_score", pa.float64()),
        ("opening", pa.string()),
        ("opened_prompt_ids", pa.list_(pa.int32())),
        ("failure", pa.string()),
    ]
)
"""One row per response. `round` and `index` name the group, `group` is its number in the step
(null: the step does not have it), `sample` the response's number in the group, `graded_score` what
the verifier gave it (null: not graded yet), `opened_prompt_ids` the prompt with the environment's
`opening` (null: it has none); the other columns are the fields of `Response`."""

LATER_COLUMNS = ("graded_score", "opening", "opened_prompt_ids", "failure")
"""Tables of earlier versions lack some of them."""

RUN_KEY = b"megatron_resrl.run"
"""Entry of the schema's metadata: identity of the run that generated the groups."""


@dataclass(frozen=True)
class Group:
    """All responses to one prompt of a step."""

    round: int
    """0: the step's own prompts; r: round r of dynamic sampling."""
    index: int
    """Of the prompt in its round."""
    prompt_ids: tuple[int, ...]
    """Token ids of the prompt."""
    responses: list[Response]
    """At least one."""
    number: int | None = None
    """Of the group in the step; None: not decided, or replaced by another group."""
    graded_scores: tuple[float, ...] | None = None
    """The verifier's, one for each response; None: not graded."""

    @property
    def key(self) -> tuple[int, int]:
        """Names the group within its step."""
        return self.round, self.index


def parquet_bytes(groups: Sequence[Group], metadata: Mapping[bytes, bytes]) -> bytes:
    """A Parquet file of groups, compressed, with `metadata` in its schema."""
    sink = pa.BufferOutputStream()
    table = to_table(groups).replace_schema_metadata(dict(metadata))
    pq.write_table(table, sink, compression="zstd")
    return sink.getvalue().to_pybytes()


def write_whole(path: Path, content: bytes) -> None:
    """Writes a file that appears whole or not at all; makes its folder.

    Raises:
        OSError: There is no room, or the folder cannot be made.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    incomplete = path.with_suffix(".incomplete")
    incomplete.write_bytes(content)
    os.replace(incomplete, path)


def to_table(groups: Sequence[Group]) -> pa.Table:
    """Rows group by group, with the columns of `SCHEMA`."""
    rows = [
        (group, sample, response)
        for group in groups
        for sample, response in enumerate(group.responses)
    ]
    columns: list[list[Any]] = [
        [group.round for group, _, _ in rows],
        [group.index for group, _, _ in rows],
        [group.number for group, _, _ in rows],
        [sample for _, sample, _ in rows],
        [group.prompt_ids for group, _, _ in rows],
        [response.token_ids for _, _, response in rows],
        [response.log_probs for _, _, response in rows],
        [response.finish_reason for _, _, response in rows],
        [response.response_mask for _, _, response in rows],
        [response.weight_versions[0] for _, _, response in rows],
        [response.weight_versions[1] for _, _, response in rows],
        [response.score for _, _, response in rows],
        [
            None if group.graded_scores is None else group.graded_scores[sample]
            for group, sample, _ in rows
        ],
        [response.opening and response.opening.text for _, _, response in rows],
        [response.opening and response.opening.prompt_ids for _, _, response in rows],
        [response.failure for _, _, response in rows],
    ]
    arrays = [pa.array(c, f.type) for c, f in zip(columns, SCHEMA, strict=True)]
    return pa.table(arrays, schema=SCHEMA)


def from_table(table: pa.Table) -> list[Group]:
    """The groups of `to_table`, bit by bit."""
    groups = []
    for (number, index), rows in groupby(
        table.to_pylist(), key=lambda row: (row["round"], row["index"])
    ):
        members = list(rows)
        first = members[0]
        responses = [_response(row) for row in members]
        # See `LATER_COLUMNS`.
        scores = tuple(row.get("graded_score") for row in members)
        groups.append(
            Group(
                number,
                index,
                tuple(first["prompt_ids"]),
                responses,
                first["group"],
                None if None in scores else scores,
            )
        )
    return groups


def _response(row: dict[str, Any]) -> Response:
    mask, opening = row["response_mask"], row.get("opening")
    return Response(
        tuple(row["token_ids"]),
        tuple(row["log_probs"]),
        row["finish_reason"],
        None if mask is None else tuple(mask),
        (row["first_version"], row["last_version"]),
        row["score"],
        None if opening is None else Opening(opening, tuple(row["opened_prompt_ids"])),
        row.get("failure"),
    )
