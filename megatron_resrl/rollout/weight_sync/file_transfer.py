"""Weights through safetensors files in a directory that trainer and servers share."""

from __future__ import annotations

import os
import shutil
import socket
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import psutil
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from megatron_resrl.errors import InputError, RunError
from megatron_resrl.rollout.weight_sync.buckets import Bucket, in_buckets
from megatron_resrl.rollout.weight_sync.control import ServerControl
from megatron_resrl.rollout.weight_sync.file_copies import FileCopies, bucket_name
from megatron_resrl.rollout.weight_sync.last_sent import BucketFile, LastSent
from megatron_resrl.rollout.weight_sync.receivers import (
    Calls,
    Receivers,
    finish_update,
    pause,
    start_update,
)

_FOLDER = "megatron-resrl-weights-"


@dataclass
class SyncBytes:
    """How many bytes a sync was about."""

    weights: int = 0
    """All weights."""
    sent: int = 0
    """What each server got."""
    compared: int = 0
    """Weights that were compared with those sent before."""
    changed: int = 0
    """Of these, units that differ."""

    @property
    def changed_fraction(self) -> float | None:
        """Share of the compared weights that differ; None: none were compared."""
        return self.changed / self.compared if self.compared else None


class FileTransfer:
    """Global rank 0's part of vLLM's back end `megatron_resrl_file`.

    Servers load one bucket while the next bucket is gathered and written; at most two buckets are
    on disk, in a temporary folder that only this user can read. `FileCopies` writes them for
    servers that do not see this folder.
    """

    def __init__(
        self,
        transfer_dir: str,
        bucket_bytes: int,
        *,
        timeout_s: float,
        last_sent: LastSent | None = None,
    ) -> None:
        """
        Args:
            transfer_dir: Setting `vllm.transfer_dir`.
            bucket_bytes: Setting `vllm.bucket_bytes`.
            timeout_s: Seconds that a server may take to load a bucket.
            last_sent: Makes the contents of the files; None: all weights, and nothing is kept.
        """
        self.transfer_dir = Path(transfer_dir)
        self.bucket_bytes = bucket_bytes
        self.timeout_s = timeout_s
        self.last_sent = last_sent or LastSent({}, keep=False)
        self.in_full = True

    def send(
        self,
        servers: Sequence[ServerControl],
        weights: Iterator[tuple[str, torch.Tensor]],
        version: int,
        *,
        model_bytes: int,
        copies: FileCopies | None = None,
    ) -> tuple[SyncBytes, tuple[str, ...]]:
        """Sends all weights to all servers, by what has changed unless `in_full` is set.

        Args:
            servers: Servers that take the weights.
            weights: Read to the end even if every server fails.
            version: Version of these weights.
            model_bytes: At least the size of all weights.
            copies: Written on other nodes; None: none.

        Returns:
            What was sent, and the urls of servers that failed.

        Raises:
            InputError: `vllm.transfer_dir` cannot be used or lacks room; `weights` may not have
                been read to the end if there are no copies.
        """
        copies = copies or FileCopies(self)
        buckets = copies.in_step(in_buckets(weights, self.bucket_bytes))
        try:
            return self._send(servers, buckets, copies, version, model_bytes)
        except (InputError, RunError):
            if copies.writers:  # They write in step with this rank.
                for _ in buckets:
                    pass
            raise

    def _send(
        self,
        servers: Sequence[ServerControl],
        buckets: Iterator[Bucket],
        copies: FileCopies,
        version: int,
        model_bytes: int,
    ) -> tuple[SyncBytes, tuple[str, ...]]:
        self._require_room(2 * min(self.bucket_bytes, model_bytes))
        with self.folder() as folder, Receivers(servers) as receivers:
            receivers.each(pause)
            receivers.each(start_update)
            size = SyncBytes()
            loading: Calls = []
            previous: Path | None = None
            for number, bucket in enumerate(buckets):
                size.weights += sum(tensor.nbytes for _, tensor in bucket)
                if not receivers.alive:
                    continue
                written = self.write(Path(folder), number, bucket)
                size.sent += written.num_bytes
                size.compared += written.compared_bytes
                size.changed += written.changed_bytes
                path = Path(folder) / bucket_name(number)
                self._delete_loaded(receivers, loading, previous)
                loading = receivers.start(partial(self._load, copies=copies, path=path))
                previous = path
            self._delete_loaded(receivers, loading, previous)
            receivers.each(partial(finish_update, version=version))
            return size, tuple(receivers.failures)

    def _load(self, server: ServerControl, *, copies: FileCopies, path: Path) -> None:
        info = {"update_info": {"path": str(copies.path(server, path))}}
        server.post("/update_weights", info, timeout_s=self.timeout_s)

    @staticmethod
    def _delete_loaded(receivers: Receivers, loading: Calls, path: Path | None) -> None:
        """Waits until the servers have loaded a bucket, then deletes its file."""
        receivers.wait(loading)
        if path is not None:
            path.unlink()

    def folder(self) -> tempfile.TemporaryDirectory:
        """A folder for buckets, with those of killed trainers removed.

        Raises:
            InputError: `vllm.transfer_dir` cannot be written to.
        """
        host = f"{_FOLDER}{socket.gethostname()}-"
        self._clear(host)
        try:
            return tempfile.TemporaryDirectory(
                prefix=f"{host}{os.getpid()}-", dir=self.transfer_dir
            )
        except OSError as error:
            raise InputError(
                f"vllm.transfer_dir is {str(self.transfer_dir)!r}, where no folder can be made "
                f"({error}); give a directory that the trainer can write and the servers can read"
            ) from error

    def _clear(self, host: str) -> None:
        """Removes the folders of killed trainers of this host: buckets may be gigabytes."""
        for left in self.transfer_dir.glob(f"{host}*"):
            process = left.name.removeprefix(host).partition("-")[0]
            if process.isdigit() and not psutil.pid_exists(int(process)):
                shutil.rmtree(left, ignore_errors=True)

    def _require_room(self, needed: int) -> None:
        try:
            free = shutil.disk_usage(self.transfer_dir).free
        except OSError as error:
            raise InputError(
                f"vllm.transfer_dir is {str(self.transfer_dir)!r}, which cannot be used ({error})"
            ) from error
        if free < needed:
            raise InputError(
                f"vllm.transfer_dir {str(self.transfer_dir)!r} has {free / 1e6:.0f} MB free and "
                f"two buckets of weights need {needed / 1e6:.0f} MB; give another directory or "
                f"lower vllm.bucket_bytes ({self.bucket_bytes})"
            )

    def write(self, folder: Path, number: int, bucket: Bucket) -> BucketFile:
        """Writes the bucket with this number into a folder, and empties it.

        Returns:
            What was written.

        Raises:
            InputError: `vllm.transfer_dir` lacks room or cannot be written to.
        """
        content = self.last_sent.next_file(number, bucket, in_full=self.in_full)
        bucket.clear()
        self._require_room(content.num_bytes)
        try:
            save_file(content.tensors, folder / bucket_name(number), metadata=content.notes)
        except (OSError, SafetensorError) as error:
            raise InputError(
                f"weights cannot be written to vllm.transfer_dir {str(self.transfer_dir)!r}: "
                f"{error}"
            ) from error
        return content
