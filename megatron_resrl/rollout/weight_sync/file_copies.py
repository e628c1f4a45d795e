"""Files of weights on nodes that do not share rank 0's `vllm.transfer_dir`.

`/dev/shm` belongs to one node. Where servers run on several nodes that train, the first rank of
each other node writes the buckets once more, for the servers beside it.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import Protocol

import torch.distributed as dist

from megatron_resrl.errors import InputError
from megatron_resrl.platform.distributed import broadcast_object, gather_objects
from megatron_resrl.rollout.serving.nodes.place import trainer_nodes
from megatron_resrl.rollout.weight_sync.buckets import Bucket
from megatron_resrl.rollout.weight_sync.control import ServerControl

_MARKER = "megatron-resrl-seen-by-"


class Files(Protocol):
    """What writes the buckets of one node, see `FileTransfer`."""

    def folder(self) -> AbstractContextManager[str]:
        """A folder of this process."""
        ...

    def write(self, folder: Path, number: int, bucket: Bucket) -> object:
        """Writes the bucket with this number into a folder, and empties it."""
        ...


class FileCopies:
    """Ranks that write the same buckets as rank 0, in step with it. Collective, used as a context.

    Attributes:
        writers: Those ranks.
        problem: Why a writer could not write; None: all could, as far as buckets were taken.
    """

    def __init__(self, files: Files, writers: tuple[int, ...] = ()) -> None:
        """
        Args:
            files: Of this rank.
            writers: From `separate_nodes`.
        """
        self.writers = writers
        self.problem: InputError | None = None
        self._files = files
        self._folders: dict[int, str] = {}
        self._stack = ExitStack()

    def __enter__(self) -> FileCopies:
        self.problem = None
        if self.writers:
            own = None
            if dist.get_rank() in self.writers:
                try:
                    own = self._stack.enter_context(self._files.folder())
                except InputError as problem:
                    self.problem = problem
            folders = gather_objects(own)
            self._folders = {rank: name for rank, name in enumerate(folders) if name is not None}
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self.writers and kind is None:
            gather_objects(None)  # Until servers have loaded the last bucket.
        self._stack.close()

    def path(self, server: ServerControl, written: Path) -> Path:
        """Where a server finds a bucket that rank 0 has written to `written`."""
        folder = self._folders.get(server.rank_beside)
        return written if folder is None else Path(folder) / written.name

    def in_step(self, buckets: Iterator[Bucket]) -> Iterator[Bucket]:
        """The buckets, each one once all writers have written it.

        Every rank iterates to the end. Rank 0 asks for the next bucket when servers have loaded the
        last but one, of which the writers then delete the file.
        """
        if not self.writers:
            yield from buckets
            return
        own = self._folders.get(dist.get_rank())
        for number, bucket in enumerate(buckets):
            gather_objects(None)  # Until rank 0 asks.
            if own is not None:
                (Path(own) / bucket_name(number - 2)).unlink(missing_ok=True)
                self._write(Path(own), number, bucket)
            self.problem = next(filter(None, gather_objects(self.problem)), None)
            yield bucket

    def _write(self, folder: Path, number: int, bucket: Bucket) -> None:
        if self.problem is None:
            try:
                self._files.write(folder, number, bucket)
            except InputError as problem:
                self.problem = problem


def bucket_name(number: int) -> str:
    """File of the bucket with this number."""
    return f"{number:05d}.safetensors"


def separate_nodes(directory: Path) -> tuple[int, ...]:
    """First ranks of the nodes on which `directory` is another one than rank 0's. Collective."""
    nodes = trainer_nodes()
    if len(nodes.ranks) == 1:
        return ()
    marker = directory / broadcast_object(f"{_MARKER}{secrets.token_hex(8)}")
    with ExitStack() as stack:
        if dist.get_rank() == 0:
            stack.enter_context(seen_file(marker))
        gather_objects(None)  # Until it is written.
        seen = gather_objects(marker.exists())
    return tuple(rank for rank in nodes.ranks[1:] if not seen[rank])


def seen_file(marker: Path) -> ExitStack:
    """Writes a file by which another process sees that a directory is shared; context of the file.

    A directory that cannot be written to gets none; who uses it will say so.
    """
    stack = ExitStack()
    try:
        marker.touch()
    except OSError:
        return stack
    stack.callback(marker.unlink, missing_ok=True)
    return stack
