"""Token files that are being written: what is finished survives a kill and is continued.

    <prefix>.incomplete/tokens.bin     token ids so far, in the order of the input
    <prefix>.incomplete/lengths        int32, tokens of each document so far
    <prefix>.incomplete/state.json     how much of both files counts, and where the input goes on
    <prefix>.incomplete/lock           locked by the process that writes

A save brings both files to the disk before state.json is replaced; what a killed process wrote
after its last save is cut off. Finished files get their names last, the manifest after them.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Self

import numpy

from megatron_resrl.corpus.dataset import bin_path, idx_path
from megatron_resrl.corpus.encoding import Counts, EncodedShard
from megatron_resrl.corpus.index_file import write_index
from megatron_resrl.corpus.manifest import Manifest, manifest_path, write_manifest
from megatron_resrl.corpus.text_files import Position, Shard
from megatron_resrl.errors import InputError

SAVE_BYTES = 64 << 20
"""Of text between two saves, about."""

_LENGTH_BYTES = 4
_TOKENS, _LENGTHS, _STATE, _LOCK = "tokens", "lengths", "state.json", "lock"


@dataclass(frozen=True)
class State:
    """How far the work is."""

    plan: Mapping[str, Any]
    """What decides about the content of the files: input, tokenizer, options."""
    position: Position = field(default_factory=Position)
    """Where the next shard begins."""
    counts: Counts = field(default_factory=Counts)
    newest_file: tuple[int, int] = (0, 0)
    """Number of the file that was begun last, and documents before it."""


class UnfinishedFiles(contextlib.AbstractContextManager):
    """The folder of files that are being written. Use it as a context manager.

    Args:
        prefix: Path of the finished files without ending.
        plan: See `State`; what an interrupted process has done is continued under the same plan.
        dtype: Of the token ids.
        force: Replace finished files, and throw away what was done under another plan.

    Raises:
        InputError: Another process writes there, or `force` is needed.
    """

    def __init__(
        self, prefix: Path, plan: Mapping[str, Any], dtype: numpy.dtype, *, force: bool
    ) -> None:
        self.prefix = prefix
        self.tokens_prefix = Path(f"{prefix}.incomplete") / _TOKENS
        """Of the files that `write_index` completes."""
        self._folder = self.tokens_prefix.parent
        self._dtype = dtype
        self._unsaved_bytes = 0
        if not (self._folder / _STATE).exists():
            self._refuse_finished(force)
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"--output_prefix {prefix} cannot be made: {error}") from error
        self._files = contextlib.ExitStack()
        try:
            self._lock()
            self.state = self._earlier_state(plan, force) or State(plan)
            self._tokens = self._opened(bin_path(self.tokens_prefix), dtype.itemsize, "tokens")
            self._lengths = self._opened(self._folder / _LENGTHS, _LENGTH_BYTES, "documents")
            self._save()
        except BaseException:
            self._files.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if not self._tokens.closed:
            # Nothing is lost when the command ends with an error; unless the disk is the error.
            with contextlib.suppress(OSError):
                self._save()
            if self.state.counts.documents == 0:
                shutil.rmtree(self._folder)
        self._files.close()

    def append(self, shard: Shard, encoded: EncodedShard) -> None:
        """Writes the next shard."""
        self._tokens.write(encoded.token_ids)
        self._lengths.write(encoded.lengths)
        state = self.state
        begins_file = shard.begin == Position(shard.begin.file)
        self.state = State(
            state.plan,
            shard.after,
            state.counts + encoded.counts,
            (shard.begin.file, state.counts.documents) if begins_file else state.newest_file,
        )
        self._unsaved_bytes += encoded.counts.text_bytes
        if self._unsaved_bytes >= SAVE_BYTES:
            self._save()

    def write_index(self) -> None:
        """Writes the index of all documents beside the tokens."""
        self._save()
        count = self.state.counts.documents
        lengths = numpy.empty(0, numpy.int32)
        if count:
            lengths = numpy.memmap(self._folder / _LENGTHS, numpy.int32, mode="r", shape=(count,))
        write_index(idx_path(self.tokens_prefix), self._dtype, lengths)

    def publish(self, manifest: Manifest) -> None:
        """Gives the finished files their names, and deletes the folder."""
        self._files.close()
        manifest_path(self.prefix).unlink(missing_ok=True)
        os.replace(bin_path(self.tokens_prefix), bin_path(self.prefix))
        os.replace(idx_path(self.tokens_prefix), idx_path(self.prefix))
        write_manifest(self.prefix, manifest)
        shutil.rmtree(self._folder)

    def _refuse_finished(self, force: bool) -> None:
        finished = [path(self.prefix) for path in (bin_path, idx_path, manifest_path)]
        there = [path for path in finished if path.exists()]
        if there and not force:
            raise InputError(
                f"--output_prefix: {there[0]} exists; choose another place, or give --force to "
                "replace it"
            )

    def _lock(self) -> None:
        """Takes a lock that ends with this process, and that its processes do not inherit."""
        file = self._files.enter_context((self._folder / _LOCK).open("a"))
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            raise InputError(
                f"--output_prefix {self.prefix}: another process writes there; wait for its end, "
                "or choose another place"
            ) from None
        except OSError:
            pass  # A file system without locks.

    def _earlier_state(self, plan: Mapping[str, Any], force: bool) -> State | None:
        """What an interrupted process has left; None: nothing, or nothing that is wanted."""
        try:
            content = json.loads((self._folder / _STATE).read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        differing = [name for name in plan if plan[name] != content["plan"].get(name)]
        if differing and not force:
            raise InputError(
                f"{self._folder} holds unfinished work with another --{differing[0]}; give the "
                "same options and unchanged files to go on, or --force to begin anew"
            )
        if differing:
            (self._folder / _STATE).unlink()
            return None
        tokens = bin_path(self.tokens_prefix)
        if not tokens.exists() and bin_path(self.prefix).exists():
            # A process was killed while it gave the files their names.
            os.replace(bin_path(self.prefix), tokens)
        return State(
            plan,
            Position(**content["position"]),
            Counts(**content["counts"]),
            tuple(content["newest_file"]),
        )

    def _opened(self, path: Path, item_bytes: int, counted: str) -> BinaryIO:
        """A file that holds what the state counts, open for more."""
        size = getattr(self.state.counts, counted) * item_bytes
        found = path.stat().st_size if path.exists() else 0
        if found < size:
            raise InputError(
                f"{path} has {found} bytes, and {_STATE} beside it counts {size}; delete "
                f"{self._folder} to begin anew"
            )
        file = self._files.enter_context(path.open("ab"))
        file.truncate(size)
        return file

    def _save(self) -> None:
        for file in (self._tokens, self._lengths):
            file.flush()
            os.fsync(file.fileno())
        incomplete = self._folder / f"{_STATE}.incomplete"
        incomplete.write_text(json.dumps(asdict(self.state)), encoding="utf-8")
        os.replace(incomplete, self._folder / _STATE)
        self._unsaved_bytes = 0
