"""Rollouts that are finished and not yet in a checkpoint: a killed run does not make them again.

    <output_dir>/rollouts/step_000013/round_0_group_000005.parquet

holds the responses to prompt 5 of round 0 of step 13 (later rounds replace groups that can teach
nothing). A file appears whole, under its name, when its group is complete, so that SIGKILL loses
nothing but unfinished groups; a host that loses power may lose the last ones. The folder of a step
is deleted when a checkpoint of that step or a later one is there.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
import shutil
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

_STEP = re.compile(r"step_(\d{6,})")
_IDENTITY = b"megatron_resrl.run"
_SCHEMA = pa.schema(
    [
        ("prompt", pa.int32()),
        ("prompt_ids", pa.list_(pa.int32())),
        ("token_ids", pa.list_(pa.int32())),
        ("log_probs", pa.list_(pa.float64())),
        ("finish_reason", pa.string()),
        ("response_mask", pa.list_(pa.bool_())),
        ("first_version", pa.int64()),
        ("last_version", pa.int64()),
        ("score", pa.float64()),
    ]
)

Group = tuple[tuple[int, ...], list[Response]]
"""A prompt's token ids and its responses."""


class RolloutLog:
    """The rollouts of one run. Every rank makes the same calls but `write`."""

    def __init__(self, directory: Path, identity: bytes = b"") -> None:
        """
        Args:
            directory: Holds a folder for each step; need not exist.
            identity: Files with another one are ignored, see `run_identity`; empty: none are.
        """
        self.directory = directory
        self.identity = identity

    @classmethod
    def of_run(cls, recipe: Recipe) -> RolloutLog:
        """The log in the output directory of a run."""
        return cls(Path(recipe.output_dir) / "rollouts", run_identity(recipe))

    def read(self, step: int, round_: int = 0) -> dict[int, Group]:
        """The finished groups of a step's round, by the prompt's index in it. Collective."""
        return on_first_rank(lambda: self._read(step, round_))

    def write(
        self,
        step: int,
        round_: int,
        prompt: int,
        prompt_ids: Sequence[int],
        responses: Sequence[Response],
    ) -> None:
        """Keeps a group. On global rank 0 alone, from any thread.

        Raises:
            OSError: There is no room for it, or the directory cannot be written.
        """
        count = len(responses)
        columns = [
            [prompt] * count,
            [prompt_ids] * count,
            [response.token_ids for response in responses],
            [response.log_probs for response in responses],
            [response.finish_reason for response in responses],
            [response.response_mask for response in responses],
            [response.weight_versions[0] for response in responses],
            [response.weight_versions[1] for response in responses],
            [response.score for response in responses],
        ]
        schema = _SCHEMA.with_metadata({_IDENTITY: self.identity})
        arrays = [pa.array(c, f.type) for c, f in zip(columns, _SCHEMA, strict=True)]
        folder = self._folder(step)
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"round_{round_}_group_{prompt:06d}.parquet"
        unfinished = path.with_suffix(".incomplete")
        pq.write_table(pa.table(arrays, schema=schema), unfinished, compression="zstd")
        os.replace(unfinished, path)

    def discard(self, *, until: int | None = None) -> None:
        """Deletes the steps up to `until`, or all."""
        if dist.get_rank() != 0:
            return
        for folder in self.directory.glob("step_*"):
            match = _STEP.fullmatch(folder.name)
            if match and (until is None or int(match[1]) <= until):
                shutil.rmtree(folder)

    def _read(self, step: int, round_: int) -> dict[int, Group]:
        groups: dict[int, Group] = {}
        for path in sorted(self._folder(step).glob(f"round_{round_}_group_*.parquet")):
            rows = self._rows(path)
            for row in rows:
                empty: Group = (tuple(row["prompt_ids"]), [])
                groups.setdefault(row["prompt"], empty)[1].append(_response(row))
        return groups

    def _rows(self, path: Path) -> list[dict]:
        try:
            table = pq.ParquetFile(path).read()
        except (OSError, pa.ArrowException) as error:
            logger.warning("%s cannot be read (%s); its group is generated again", path, error)
            return []
        if table.schema.names != _SCHEMA.names:
            logger.warning("%s was written by another version and is not used", path)
            return []
        if self.identity and table.schema.metadata.get(_IDENTITY) != self.identity:
            logger.warning("%s is of a run with other settings and is not used", path)
            return []
        return table.to_pylist()

    def _folder(self, step: int) -> Path:
        return self.directory / f"step_{step:06d}"


def _response(row: dict) -> Response:
    mask = row["response_mask"]
    return Response(
        tuple(row["token_ids"]),
        tuple(row["log_probs"]),
        row["finish_reason"],
        None if mask is None else tuple(mask),
        (row["first_version"], row["last_version"]),
        row["score"],
    )


def run_identity(recipe: Recipe) -> bytes:
    """A digest of the settings that decide which weights a step has and what it draws."""
    neutral = replace(
        recipe,
        output_dir="",
        parallel=ParallelConfig(),
        checkpoint=CheckpointConfig(),
        evaluation=EvaluationConfig(),
        logging=LoggingConfig(),
    )
    return hashlib.sha256(recipe_yaml(neutral).encode()).hexdigest().encode()
