"""Rollouts kept for good, to be looked into and to train on again without an engine.

    <DIR>/step_000013.parquet    all groups of step 13, one row per response; see `group_table`

`pandas.read_parquet` reads it. Groups that dynamic sampling replaced are there, too, without a
number in column `group`.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from megatron_resrl.config.schema import RolloutConfig
from megatron_resrl.errors import RunError
from megatron_resrl.rollout.group_table import SCHEMA, Group, from_table, to_table

_NAME = re.compile(r"step_(\d{6,})\.parquet")
_RUN = b"megatron_resrl.run"
_SAMPLING = b"megatron_resrl.sampling"


class RecordingError(RunError):
    """A recording cannot be used; the message names the file."""

    common = True


def sampling_settings(rollout: RolloutConfig) -> dict[str, Any]:
    """The settings that name the distribution responses were drawn from, and the step's size."""
    names = ("prompts_per_step", "group_size", "temperature", "top_p", "top_k")
    return {name: getattr(rollout, name) for name in names}


class Recording:
    """The recording in one directory. For one rank only."""

    def __init__(self, directory: str | Path) -> None:
        """
        Args:
            directory: Made by the first `write`.
        """
        self.directory = Path(directory)

    def steps(self) -> list[int]:
        """The recorded steps, ascending."""
        names = (_NAME.fullmatch(path.name) for path in self.directory.glob("step_*.parquet"))
        return sorted(int(name[1]) for name in names if name)

    def path(self, step: int) -> Path:
        """Where a step is."""
        return self.directory / f"step_{step:06d}.parquet"

    def write(
        self, step: int, groups: Sequence[Group], *, run: bytes, sampling: dict[str, Any]
    ) -> None:
        """Records a step; it appears whole or not at all.

        Args:
            step: The training step.
            groups: All that were generated for it.
            run: Identity of the run.
            sampling: From `sampling_settings`.

        Raises:
            OSError: There is no room.
        """
        metadata = {_RUN: run, _SAMPLING: json.dumps(sampling).encode()}
        table = to_table(groups).replace_schema_metadata(metadata)
        self.directory.mkdir(parents=True, exist_ok=True)
        path = self.path(step)
        unfinished = path.with_suffix(".incomplete")
        pq.write_table(table, unfinished, compression="zstd")
        os.replace(unfinished, path)

    def read(self, step: int) -> list[Group]:
        """The groups of a step as they were written.

        Raises:
            RecordingError: They are not there, or not readable.
        """
        path = self.path(step)
        if not path.is_file():
            steps = self.steps()
            held = f"it holds steps {steps[0]} to {steps[-1]}" if steps else "it holds no step"
            raise RecordingError(f"step {step} is not recorded: there is no {path}; {held}")
        try:
            table = pq.read_table(path)
        except (OSError, pa.ArrowException) as error:
            raise RecordingError(f"{path} cannot be read: {error}") from error
        if table.schema.names != SCHEMA.names:
            raise RecordingError(
                f"{path} has columns {', '.join(table.schema.names)}; a recording has "
                f"{', '.join(SCHEMA.names)}"
            )
        return from_table(table)

    def run(self, step: int) -> bytes | None:
        """Identity of the run that recorded a step.

        Raises:
            RecordingError: The file cannot be read.
        """
        return self._metadata(step).get(_RUN)

    def sampling(self, step: int) -> dict[str, Any]:
        """The `sampling_settings` of the run that recorded a step.

        Raises:
            RecordingError: The file cannot be read or is no recording.
        """
        found = self._metadata(step).get(_SAMPLING)
        if found is None:
            raise RecordingError(f"{self.path(step)} was not written by rollout.record")
        return json.loads(found)

    def _metadata(self, step: int) -> dict[bytes, bytes]:
        path = self.path(step)
        try:
            return pq.read_schema(path).metadata or {}
        except (OSError, pa.ArrowException) as error:
            raise RecordingError(f"{path} cannot be read: {error}") from error
