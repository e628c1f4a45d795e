"""Groups that are finished and not yet in a checkpoint: a killed run does not make them again.

    <output_dir>/rollouts/step_000013.groups    finished groups of step 13, in the order they came

A group is appended as soon as its last response is there, by one write, so that it outlives a
process that is killed at any moment. It is not flushed to the disk itself: a host that loses power
may lose groups, never gain wrong ones. A step's file is deleted when a checkpoint of that step or
of a later one is there.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
import struct
import sys
import zlib
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import torch.distributed as dist

from megatron_resrl.config.load import recipe_yaml
from megatron_resrl.config.schema import (
    CheckpointConfig,
    EvaluationConfig,
    LoggingConfig,
    ParallelConfig,
    Recipe,
)
from megatron_resrl.platform.distributed import run_on_rank_zero
from megatron_resrl.rollout.group_table import SCHEMA, Group, from_table, to_table

logger = logging.getLogger(__name__)

_NAME = re.compile(r"step_(\d{6,})\.groups")
_FRAME = struct.Struct("<4sIQ")
"""Before each entry: a mark, and the entry's CRC-32 and length. The first entry of a file is the
identity of its run, the others are groups."""
_MARK = b"GRP1"
_COMPRESSED = pa.ipc.IpcWriteOptions(compression="zstd")


class RolloutLog:
    """The log of one run. Every rank makes the same calls; only rank 0 touches files."""

    def __init__(self, recipe: Recipe, contents: str = "") -> None:
        """
        Args:
            recipe: Files of a run with other settings are ignored, unless they are settings that
                leave the policy's weights what they are.
            contents: Digest of the model, data and reward that the settings point to; files of a
                run with others are ignored, too.
        """
        self.directory = Path(recipe.output_dir) / "rollouts"
        self.identity = run_identity(recipe, contents)
        self._failure: OSError | None = None

    def read(self, step: int) -> list[Group]:
        """The finished groups of a step, and leaves its file ready to be appended to. Collective.

        A file whose end was not written whole keeps what is before it.
        """
        return run_on_rank_zero(lambda: self._read(step))

    def append(self, step: int, group: Group) -> None:
        """Keeps a finished group. On rank 0 alone, from any thread, after `read` of the step.

        Raises the audit event `megatron_resrl.group` with step, round and index when it is there.
        An error is kept for `confirm`, because the other ranks do not know of the call.
        """
        if self._failure is not None:
            return
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            path = self._path(step)
            entry = _frame(_serialised(group))
            with path.open("ab", buffering=0) as file:
                if file.tell() == 0:
                    entry = _frame(self.identity) + entry
                if file.write(entry) != len(entry):
                    raise OSError(f"{path} could not be written whole")
        except OSError as error:
            self._failure = error
            return
        sys.audit("megatron_resrl.group", step, *group.key)

    def confirm(self) -> None:
        """Makes sure that all groups so far were kept. Collective.

        Raises:
            CheckpointError: One was not, e.g. because there is no room for it.
        """
        run_on_rank_zero(self._raise_failure)

    def discard(self, *, until: int | None = None) -> None:
        """Deletes the files of steps up to `until`, or all."""
        if dist.get_rank() != 0:
            return
        for path in self.directory.glob("step_*.groups"):
            match = _NAME.fullmatch(path.name)
            if match and (until is None or int(match[1]) <= until):
                path.unlink()

    def _raise_failure(self) -> None:
        if self._failure is not None:
            raise self._failure

    def _read(self, step: int) -> list[Group]:
        path = self._path(step)
        if not path.is_file():
            return []
        content = path.read_bytes()
        entries, end = _split(content)
        if not entries or entries[0] != self.identity:
            reason = "is of a run with other settings" if entries else "holds nothing whole"
            logger.warning("%s %s and is not used", path, reason)
            path.unlink()
            return []
        if end < len(content):
            logger.warning("%s was not written whole; %d groups are", path, len(entries) - 1)
            os.truncate(path, end)
        return [group for entry in entries[1:] for group in _deserialised(entry)]

    def _path(self, step: int) -> Path:
        return self.directory / f"step_{step:06d}.groups"


def run_identity(recipe: Recipe, contents: str = "") -> bytes:
    """A digest of the settings, of what they point to (`contents`) and of the format, which decide
    what a step's groups are."""
    neutral = replace(
        recipe,
        output_dir="",
        parallel=ParallelConfig(),
        rollout=replace(recipe.rollout, record=None),
        checkpoint=CheckpointConfig(),
        evaluation=EvaluationConfig(),
        logging=LoggingConfig(),
    )
    text = f"{SCHEMA}\n{recipe_yaml(neutral)}{contents}"
    return hashlib.sha256(text.encode()).hexdigest().encode()


def _serialised(group: Group) -> bytes:
    table = to_table([group])
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema, options=_COMPRESSED) as writer:
        writer.write_table(table)
    return sink.getvalue().to_pybytes()


def _deserialised(entry: bytes) -> list[Group]:
    with pa.ipc.open_stream(entry) as reader:
        return from_table(reader.read_all())


def _frame(entry: bytes) -> bytes:
    return _FRAME.pack(_MARK, zlib.crc32(entry), len(entry)) + entry


def _split(content: bytes) -> tuple[list[bytes], int]:
    """The entries up to the first that is not whole, and where they end."""
    entries: list[bytes] = []
    end = 0
    while end + _FRAME.size <= len(content):
        mark, checksum, length = _FRAME.unpack_from(content, end)
        begin = end + _FRAME.size
        entry = content[begin : begin + length]
        if mark != _MARK or len(entry) < length or zlib.crc32(entry) != checksum:
            break
        entries.append(entry)
        end = begin + length
    return entries, end
