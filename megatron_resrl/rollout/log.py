"""Groups that are finished and not yet in a checkpoint: a killed run does not generate them again.

    <output_dir>/rollouts/step_000013/round_0_group_00007.1f2e3d4c.parquet

One Parquet file for each finished group, see `group_table`; the digits before `.parquet` are the
CRC-32 of the file. A group's file is written under another name and renamed as soon as its last
response is there, so that it outlives a process that is killed at any moment. It is not flushed to
the disk itself: a host that loses power may lose groups, never gain wrong ones. A step's files are
deleted when a checkpoint of that step or of a later one is there.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import re
import shutil
import sys
import zlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import torch.distributed as dist

from megatron_resrl.config.load import recipe_yaml
from megatron_resrl.config.schema import (
    CheckpointConfig,
    EvaluationConfig,
    LoggingConfig,
    ParallelConfig,
    Recipe,
)
from megatron_resrl.config.schema_health import HealthConfig
from megatron_resrl.platform.distributed import run_on_rank_zero
from megatron_resrl.rollout.engine import TrainingRound
from megatron_resrl.rollout.group_table import (
    RUN_KEY,
    SCHEMA,
    Group,
    from_table,
    parquet_bytes,
    write_whole,
)

logger = logging.getLogger(__name__)

_STEP = re.compile(r"step_(\d{6,})(\.groups)?")
"""A step's folder, or its file in the format of an earlier version."""
_GROUP = re.compile(r"round_(?P<round>\d+)_group_\d+\.(?P<crc>[0-9a-f]{8})\.parquet")


class RolloutLog:
    """The log of one run. Every rank makes the same calls; only rank 0 touches files."""

    def __init__(self, directory: Path, identity: bytes, *, rollbacks: int = 0) -> None:
        """
        Args:
            directory: `<output_dir>/rollouts`; made by the first `append`.
            identity: From `run_identity`: groups of another run are not used.
            rollbacks: How often the run has gone back to a checkpoint: groups of steps that it has
                dropped are not used.
        """
        self.directory = directory
        self.identity = identity
        self._key = identity + (b"-%d" % rollbacks if rollbacks else b"")
        self._failure: OSError | None = None

    def read(self, training_round: TrainingRound) -> list[Group]:
        """The finished groups of one round of a step. Collective.

        Files that are damaged, or of a run with other settings, are deleted with a warning.
        """
        return run_on_rank_zero(lambda: list(self._read(training_round)))

    def append(self, step: int, group: Group) -> None:
        """Keeps a finished group. On rank 0 alone, from any thread.

        Raises the audit event `megatron_resrl.group` with step, round and index when it is kept.
        An error is kept for `confirm`, because the other ranks do not know of the call.
        """
        if self._failure is not None:
            return
        content = parquet_bytes([group], {RUN_KEY: self._key})
        name = f"round_{group.round}_group_{group.index:05d}.{zlib.crc32(content):08x}.parquet"
        try:
            write_whole(self._folder(step) / name, content)
        except OSError as error:
            self._failure = error
            return
        sys.audit("megatron_resrl.group", step, *group.key)

    def confirm(self) -> None:
        """Makes sure that all groups so far were kept. Collective.

        Raises:
            RunFileError: One was not, e.g. because there is no room for it.
        """
        run_on_rank_zero(self._raise_failure)

    def discard(self, *, until: int | None = None) -> None:
        """Deletes the files of steps up to `until`, or of all steps."""
        if dist.get_rank() != 0:
            return
        for path in self.directory.glob("step_*"):
            match = _STEP.fullmatch(path.name)
            if match and (until is None or int(match[1]) <= until):
                shutil.rmtree(path) if path.is_dir() else path.unlink()

    def _raise_failure(self) -> None:
        if self._failure is not None:
            raise self._failure

    def _read(self, training_round: TrainingRound) -> Iterator[Group]:
        folder = self._folder(training_round.step)
        self._delete_unusable(
            [path for path in [folder.with_suffix(".groups")] if path.is_file()],
            "written by an earlier version",
        )
        damaged, foreign = [], []
        # A group that was generated twice: the later file is the last one.
        matches = ((path, _GROUP.fullmatch(path.name)) for path in folder.glob("round_*"))
        files = [(path, match) for path, match in matches if match is not None]
        for path, match in sorted(files, key=lambda file: file[0].stat().st_mtime_ns):
            if int(match["round"]) != training_round.number:
                continue
            content = path.read_bytes()
            if f"{zlib.crc32(content):08x}" != match["crc"]:
                damaged.append(path)
                continue
            table = pq.read_table(pa.BufferReader(content))
            if (table.schema.metadata or {}).get(RUN_KEY) != self._key:
                foreign.append(path)
                continue
            yield from from_table(table)
        self._delete_unusable(damaged, "damaged")
        self._delete_unusable(foreign, "of a run with other settings or of dropped steps")

    def _delete_unusable(self, paths: list[Path], reason: str) -> None:
        if not paths:
            return
        logger.warning(
            "rollout log: deleted %s, %s; %d such files, whose groups are generated again",
            paths[0],
            reason,
            len(paths),
        )
        for path in paths:
            path.unlink()
        with contextlib.suppress(OSError):  # Not empty, or not there.
            paths[0].parent.rmdir()

    def _folder(self, step: int) -> Path:
        return self.directory / f"step_{step:06d}"


def run_identity(recipe: Recipe, contents: str = "") -> bytes:
    """A digest of all that decides what a step's groups are.

    Args:
        recipe: Its settings count unless they leave the policy's weights what they are.
        contents: Digest of the model, data and reward that the settings point to.
    """
    neutral = replace(
        recipe,
        output_dir="",
        time_budget=None,
        parallel=ParallelConfig(),
        rollout=replace(recipe.rollout, record=None),
        checkpoint=CheckpointConfig(),
        health=HealthConfig(),
        evaluation=EvaluationConfig(),
        logging=LoggingConfig(),
    )
    # The format of the files is part of it.
    text = f"{SCHEMA}\n{recipe_yaml(neutral)}{contents}"
    return hashlib.sha256(text.encode()).hexdigest().encode()
