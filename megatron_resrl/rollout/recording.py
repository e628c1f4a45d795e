"""Rollouts that are kept, to be read and to be trained on again without an engine.

    <DIR>/step_000013.parquet    all groups of step 13, one row per response; see `group_table`

`pandas.read_parquet` reads it. Groups that dynamic sampling replaced are in it, too, without a
number in column `group`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from megatron_resrl.config.schema import RolloutConfig
from megatron_resrl.errors import RunError
from megatron_resrl.platform.distributed import run_on_rank_zero
from megatron_resrl.rollout.group_table import (
    LATER_COLUMNS,
    RUN_KEY,
    SCHEMA,
    Group,
    from_table,
    parquet_bytes,
    write_whole,
)

_NAME = re.compile(r"step_(\d{6,})\.parquet")
_SAMPLING = b"megatron_resrl.sampling"


class RecordingError(RunError):
    """A recording cannot be used; the message names the file."""

    common = True


def sampling_settings(rollout: RolloutConfig) -> dict[str, Any]:
    """The settings that decide what distribution responses have, and how many a step has."""
    names = ("prompts_per_step", "group_size", "temperature", "top_p", "top_k")
    return {name: getattr(rollout, name) for name in names}


class Recording:
    """The recording in one directory. Used by rank 0 alone."""

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
        """The file of a step."""
        return self.directory / f"step_{step:06d}.parquet"

    def write(
        self, step: int, groups: Sequence[Group], *, run: bytes, sampling: dict[str, Any]
    ) -> None:
        """Records a step; it appears whole or not at all.

        Args:
            step: The training step.
            groups: All groups that were generated for it.
            run: Identity of the run.
            sampling: From `sampling_settings`.

        Raises:
            OSError: There is no room.
        """
        metadata = {RUN_KEY: run, _SAMPLING: json.dumps(sampling).encode()}
        write_whole(self.path(step), parquet_bytes(groups, metadata))

    def read(self, step: int) -> list[Group]:
        """The groups of a step as they were written.

        Raises:
            RecordingError: The step is not recorded, or its file cannot be read.
        """
        path = self.path(step)
        if not path.is_file():
            steps = self.steps()
            contents = f"it holds steps {steps[0]} to {steps[-1]}" if steps else "it holds no step"
            raise RecordingError(f"step {step} is not recorded: there is no {path}; {contents}")
        try:
            table = pq.read_table(path)
        except (OSError, pa.ArrowException) as error:
            raise RecordingError(f"{path} cannot be read: {error}") from error
        names = [name for name in SCHEMA.names if name in table.schema.names]
        lacking = set(SCHEMA.names) - set(names)
        if table.schema.names != names or not lacking <= set(LATER_COLUMNS):
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
        return self._metadata(step).get(RUN_KEY)

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


class Recorder:
    """Records the steps of one run. Every rank makes the same calls; rank 0 writes."""

    def __init__(self, directory: str, *, run: bytes, sampling: dict[str, Any]) -> None:
        """Collective.

        Args:
            directory: `rollout.record`.
            run: Identity of the run.
            sampling: From `sampling_settings`.

        Raises:
            RecordingError: The directory holds a recording of another run.
        """
        self._recording = Recording(directory)
        self._run = run
        self._sampling = sampling
        run_on_rank_zero(self._require_same_run)

    def write(self, step: int, groups: Sequence[Group]) -> None:
        """Records a step, see `Recording.write`. Collective.

        Raises:
            RunFileError: The file could not be written.
        """
        run_on_rank_zero(
            lambda: self._recording.write(step, groups, run=self._run, sampling=self._sampling)
        )

    def _require_same_run(self) -> None:
        for step in self._recording.steps():
            if self._recording.run(step) != self._run:
                raise RecordingError(
                    f"rollout.record {str(self._recording.directory)!r} holds step {step} of a run "
                    "with other settings; give another directory or remove it"
                )
