"""SHA-256 of every file of a checkpoint: computed while writing, compared before reading.

The list is in the format of the `sha256sum` command: in a checkpoint's folder,
`sha256sum -c SHA256SUMS` does the same comparison.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
from collections.abc import Iterable, Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from pathlib import Path

import torch.distributed as dist
from torch.distributed.checkpoint.filesystem import FileSystem

from megatron_resrl.checkpoint.direct_files import DirectFile
from megatron_resrl.platform.distributed import gather_objects
from megatron_resrl.weights.torch_dist_files import ShardWriter

SUMS_FILE = "SHA256SUMS"
_BLOCK = 1 << 22
_LARGE = 1 << 18
"""Bytes from which another thread hashes them."""


class ChecksumWriter(ShardWriter):
    """torch's checkpoint writer that also computes the SHA-256 of what it writes.

    The digests are of the bytes handed over, not of what a failing disk kept of them.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._files = self.fs = _ChecksumFiles()

    @property
    def digests(self) -> dict[str, str]:
        """SHA-256 in hexadecimal of every file this rank has written to its end, by name."""
        return self._files.digests


class _ChecksumFiles(FileSystem):
    def __init__(self) -> None:
        self.digests: dict[str, str] = {}

    @contextlib.contextmanager
    def create_stream(self, path: str | os.PathLike, mode: str) -> Iterator[io.IOBase]:
        if "w" not in mode:
            with super().create_stream(path, mode) as raw:
                yield raw
            return
        with (
            DirectFile(Path(path)) as raw,
            ThreadPoolExecutor(1, "checkpoint checksums") as beside,
        ):
            stream = _HashedStream(raw, beside)
            yield stream
        self.digests[Path(path).name] = stream.hash.hexdigest()

    def rename(self, path: str | os.PathLike, new_path: str | os.PathLike) -> None:
        super().rename(path, new_path)
        if Path(path).name in self.digests:
            self.digests[Path(new_path).name] = self.digests.pop(Path(path).name)


class _HashedStream(io.IOBase):
    """A file open for writing, front to back; what is large is hashed while it is written."""

    def __init__(self, raw: io.IOBase, beside: Executor) -> None:
        self.raw = raw
        self.hash = hashlib.sha256()
        self._beside = beside

    def write(self, data: bytes | memoryview) -> int:
        if len(data) < _LARGE:
            self.hash.update(data)
            return self.raw.write(data)
        # The caller may change the data as soon as this returns.
        hashed = self._beside.submit(self.hash.update, data)
        try:
            return self.raw.write(data)
        finally:
            hashed.result()

    def tell(self) -> int:
        return self.raw.tell()

    def flush(self) -> None:
        if not self.raw.closed:
            self.raw.flush()

    def fileno(self) -> int:
        return self.raw.fileno()

    def close(self) -> None:
        self.raw.close()


def file_digest(path: Path) -> str:
    """SHA-256 of a file in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()


def write_sums(folder: Path, known: dict[str, str]) -> None:
    """Writes the list for all files of a folder.

    Args:
        folder: A checkpoint that lacks only the list.
        known: Path within the folder -> digest that is known already.
    """
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    names = [path.relative_to(folder).as_posix() for path in files]
    lines = [f"{known.get(name) or file_digest(folder / name)}  {name}\n" for name in names]
    (folder / SUMS_FILE).write_text("".join(lines), encoding="utf-8")


def sums_size(names: Iterable[str]) -> int:
    """Size in bytes of the list for files of these names."""
    return sum(2 * hashlib.sha256().digest_size + 3 + len(name.encode()) for name in names)


def read_sums(folder: Path) -> dict[str, str]:
    """Digests by path within the folder.

    Raises:
        OSError: There is no list.
        ValueError: It is not one.
    """
    sums = {}
    for line in (folder / SUMS_FILE).read_text(encoding="utf-8").split("\n")[:-1]:
        digest, gap, name = line.partition("  ")
        if not gap or len(digest) != 64:
            raise ValueError(f"{folder / SUMS_FILE} has a line {line!r}, not a digest and a name")
        sums[name] = digest
    return sums


def damaged_files(folder: Path, share: int = 0, shares: int = 1) -> list[str]:
    """Reads one of `shares` equal parts of a folder; names files that differ from the list."""
    found = []
    for name, digest in sorted(read_sums(folder).items())[share::shares]:
        path = folder / name
        if not path.is_file():
            found.append(f"{name} is missing")
        elif file_digest(path) != digest:
            found.append(f"{name} differs from its checksum")
    return found


def damaged_files_by_all(folder: Path) -> list[str]:
    """Like `damaged_files` for the whole folder, which all ranks read together. Collective."""
    try:
        mine = damaged_files(folder, dist.get_rank(), dist.get_world_size())
    except (OSError, ValueError) as error:
        mine = [f"a file cannot be read: {error}"]
    return sorted({name for names in gather_objects(mine) for name in names})
