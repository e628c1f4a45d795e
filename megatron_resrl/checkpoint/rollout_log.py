"""Rollouts that are finished and not yet in a checkpoint: a killed run does not make them again.

    <output_dir>/rollouts/step_000013.parquet    all responses of step 13

A file is written whole when the rollout of its step ends, and deleted when a checkpoint of that
step or a later one is there.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import torch.distributed as dist

from megatron_resrl.checkpoint.first_rank import on_first_rank
from megatron_resrl.config.load import recipe_yaml
from megatron_resrl.config.schema import (
    CheckpointConfig,
    EvaluationConfig,
    LoggingConfig,
    ParallelConfig,
    Recipe,
)
from megatron_resrl.rollout.engine import Response

logger = logging.getLogger(__name__)

_NAME = re.compile(r"step_(\d{6,})\.parquet")
_IDENTITY = b"megatron_resrl.run"
_SCHEMA = pa.schema(
    [
        ("prompt", pa.int32()),
        ("token_ids", pa.list_(pa.int32())),
        ("log_probs", pa.list_(pa.float64())),
        ("finish_reason", pa.string()),
        ("response_mask", pa.list_(pa.bool_())),
        ("first_version", pa.int64()),
        ("last_version", pa.int64()),
        ("score", pa.float64()),
    ]
)


class RolloutLog:
    """The log of one run. Every rank makes the same calls; only rank 0 touches files."""

    def __init__(self, recipe: Recipe) -> None:
        """
        Args:
            recipe: Files of a run with other settings are ignored, unless they are settings that
                leave the policy's weights what they are.
        """
        self.directory = Path(recipe.output_dir) / "rollouts"
        self.identity = _identity(recipe)

    def read(self, step: int) -> list[list[Response]] | None:
        """Responses of each prompt of a step; None if they have to be generated. Collective."""
        return on_first_rank(lambda: self._read(step))

    def write(self, step: int, responses: Sequence[Sequence[Response]]) -> None:
        """Keeps the responses of each prompt of a step. Collective.

        Raises:
            CheckpointError: There is no room for them.
        """
        on_first_rank(lambda: self._write(step, responses))

    def discard(self, *, until: int | None = None) -> None:
        """Deletes the files of steps up to `until`, or all."""
        if dist.get_rank() != 0:
            return
        for path in self.directory.glob("step_*.parquet"):
            match = _NAME.fullmatch(path.name)
            if match and (until is None or int(match[1]) <= until):
                path.unlink()

    def _read(self, step: int) -> list[list[Response]] | None:
        path = self._path(step)
        if not path.is_file():
            return None
        try:
            table = pq.read_table(path)
        except (OSError, pa.ArrowException) as error:
            logger.warning("%s cannot be read (%s); its step is generated again", path, error)
            return None
        same_columns = table.schema.names == _SCHEMA.names
        if not same_columns or table.schema.metadata.get(_IDENTITY) != self.identity:
            logger.warning("%s is of a run with other settings and is not used", path)
            return None
        groups: dict[int, list[Response]] = {}
        for row in table.to_pylist():
            mask = row["response_mask"]
            response = Response(
                tuple(row["token_ids"]),
                tuple(row["log_probs"]),
                row["finish_reason"],
                None if mask is None else tuple(mask),
                (row["first_version"], row["last_version"]),
                row["score"],
            )
            groups.setdefault(row["prompt"], []).append(response)
        return [groups[prompt] for prompt in sorted(groups)]

    def _write(self, step: int, responses: Sequence[Sequence[Response]]) -> None:
        flat = [(prompt, each) for prompt, several in enumerate(responses) for each in several]
        columns = [
            [prompt for prompt, _ in flat],
            [response.token_ids for _, response in flat],
            [response.log_probs for _, response in flat],
            [response.finish_reason for _, response in flat],
            [response.response_mask for _, response in flat],
            [response.weight_versions[0] for _, response in flat],
            [response.weight_versions[1] for _, response in flat],
            [response.score for _, response in flat],
        ]
        schema = _SCHEMA.with_metadata({_IDENTITY: self.identity})
        arrays = [pa.array(c, f.type) for c, f in zip(columns, _SCHEMA, strict=True)]
        self.directory.mkdir(parents=True, exist_ok=True)
        path = self._path(step)
        unfinished = path.with_suffix(".incomplete")
        pq.write_table(pa.table(arrays, schema=schema), unfinished, compression="zstd")
        os.replace(unfinished, path)

    def _path(self, step: int) -> Path:
        return self.directory / f"step_{step:06d}.parquet"


def _identity(recipe: Recipe) -> bytes:
    """A digest of the settings that decide which weights a step has."""
    neutral = replace(
        recipe,
        output_dir="",
        parallel=ParallelConfig(),
        checkpoint=CheckpointConfig(),
        evaluation=EvaluationConfig(),
        logging=LoggingConfig(),
    )
    return hashlib.sha256(recipe_yaml(neutral).encode()).hexdigest().encode()
