"""megatron-core's torch_dist format, written and read one tensor at a time by one process.

The files are torch's own: `torch.distributed.checkpoint` plans, writes and indexes them. What is
added here is that the tensors of all ranks come from one process in any order.
"""

from __future__ import annotations

import dataclasses
import io
import os
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, cast

import torch
from megatron.core.dist_checkpointing.core import CheckpointingConfig, save_config
from torch.distributed.checkpoint import DefaultSavePlanner, FileSystemWriter
from torch.distributed.checkpoint.default_planner import create_default_global_save_plan
from torch.distributed.checkpoint.filesystem import FileSystem
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    StorageMeta,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import (
    SavePlan,
    TensorWriteData,
    WriteItem,
    WriteItemType,
)
from torch.distributed.checkpoint.storage import WriteResult
from torch.distributed.checkpoint.utils import _create_file_view

from megatron_resrl.errors import InputError
from megatron_resrl.weights.inert_pickle import foreign_names, read_pickle, read_torch_file

COMMON_FILE = "common.pt"
"""Values that belong to no rank."""
_COMMON_OBJECT = "common_state/shard_0_1"
"""The stored object in which megatron-core 0.19 and later keep those values."""


@dataclasses.dataclass(frozen=True)
class Block:
    """A part of a stored tensor that one rank writes."""

    rank: int
    key: str
    global_shape: tuple[int, ...]
    offset: tuple[int, ...]
    shape: tuple[int, ...]
    """As long as `global_shape`."""


class ShardWriter(FileSystemWriter):
    """torch's writer, whose index names the folder by a string.

    A pickled path of Python 3.13 cannot be read by earlier versions.
    """

    def storage_meta(self) -> StorageMeta:
        """What the index says of the whole checkpoint."""
        return StorageMeta(checkpoint_id=str(self.checkpoint_id), save_id=self.save_id)


class TorchDistWriter:
    """Writes a checkpoint of several ranks, block by block in any order.

    No block is held: each goes to the end of its rank's file.
    """

    def __init__(
        self,
        directory: Path,
        ranks: int,
        blocks: Sequence[Block],
        objects: Sequence[tuple[int, str]],
        dtypes: Mapping[str, torch.dtype],
    ) -> None:
        """
        Args:
            directory: Exists and is empty.
            ranks: Number of ranks that the checkpoint is shared by.
            blocks: All that will be written.
            objects: Rank and key of every empty object; they are written at once.
            dtypes: Of every stored tensor, by key.
        """
        self._directory = directory
        self._writer = ShardWriter(directory, sync_files=False)
        self._writer.fs = _AppendedFiles()
        self._writer.set_up_storage_writer(True)
        items: list[list[WriteItem]] = [[] for _ in range(ranks)]
        for block in blocks:
            items[block.rank].append(_tensor_item(block, dtypes[block.key]))
        for rank, key in objects:
            items[rank].append(WriteItem(MetadataIndex(key), WriteItemType.BYTE_IO))
        plans, self._metadata = create_default_global_save_plan([SavePlan(i) for i in items])
        plans = self._writer.prepare_global_plan(plans)
        self._items = {
            (item.index.fqn, item.index.offset): (plan, item)
            for plan in plans
            for item in plan.items
        }
        self._written: list[WriteResult] = []
        for _, key in objects:
            self._write(key, None, _empty_object())

    def write(self, block: Block, tensor: torch.Tensor) -> None:
        """Appends one block to its rank's file.

        Args:
            block: One of those announced.
            tensor: Of the block's size, in any number of dimensions.
        """
        self._write(block.key, torch.Size(block.offset), tensor.reshape(block.shape))

    def close(self, common: dict[str, Any]) -> None:
        """Puts everything on stable storage; writes the index, and what belongs to no rank.

        Args:
            common: Content of common.pt, plain values.
        """
        if len(self._written) != len(self._items):
            missing = len(self._items) - len(self._written)
            raise RuntimeError(f"{missing} announced blocks of {self._directory} were not written")
        torch.save(common, self._directory / COMMON_FILE)
        save_config(CheckpointingConfig("torch_dist", 1), str(self._directory))
        self._writer.finish(self._metadata, [self._written])
        for file in self._directory.iterdir():
            with file.open("rb") as opened:
                os.fsync(opened.fileno())

    def _write(self, key: str, offset: torch.Size | None, value: torch.Tensor | io.BytesIO) -> None:
        plan, item = self._items[key, offset]
        one = dataclasses.replace(plan, items=[item])
        self._written += self._writer.write_data(one, _OneValue(value)).value()


class _AppendedFiles(FileSystem):
    """torch opens a rank's file anew for every list of items; here it goes on where it ended."""

    @contextmanager
    def create_stream(self, path: str | os.PathLike, mode: str) -> Iterator[io.IOBase]:
        mode = "ab" if mode == "wb" and str(path).endswith(".distcp") else mode
        with super().create_stream(path, mode) as stream:
            yield stream


class _OneValue(DefaultSavePlanner):
    """Gives the writer the value of the one item it was asked to write."""

    def __init__(self, value: torch.Tensor | io.BytesIO) -> None:
        super().__init__()
        self._value = value

    def resolve_data(self, write_item: WriteItem) -> torch.Tensor | io.BytesIO:
        return self._value


def _tensor_item(block: Block, dtype: torch.dtype) -> WriteItem:
    offset = torch.Size(block.offset)
    return WriteItem(
        index=MetadataIndex(block.key, offset),
        type=WriteItemType.SHARD,
        tensor_data=TensorWriteData(
            chunk=ChunkStorageMetadata(offsets=offset, sizes=torch.Size(block.shape)),
            properties=TensorProperties(dtype=dtype),
            size=torch.Size(block.global_shape),
        ),
    )


def _empty_object() -> io.BytesIO:
    """What megatron-core stores for a layer without extra state."""
    content = io.BytesIO()
    torch.save([None], content)
    return content


def read_index(directory: Path) -> Metadata:
    """The index of a checkpoint, which says what lies where. Runs no code of the file's choosing.

    Raises:
        InputError: There is none, or it is damaged.
    """
    index = directory / ".metadata"
    if not index.is_file():
        raise InputError(f"{directory} has no .metadata, the index of a torch_dist checkpoint")
    metadata = read_pickle(index)
    if not isinstance(metadata, Metadata):
        raise InputError(f"{index} is not the index of a torch_dist checkpoint; copy it again")
    return metadata


def holds_common(directory: Path, metadata: Metadata) -> bool:
    """Whether a checkpoint has its values that belong to no rank."""
    return (directory / COMMON_FILE).is_file() or _COMMON_OBJECT in metadata.state_dict_metadata


def read_common(directory: Path) -> dict[str, Any]:
    """The values of a checkpoint that belong to no rank; empty if it has none.

    Raises:
        InputError: They, or the index, are damaged.
    """
    file = directory / COMMON_FILE
    if file.is_file():
        return read_torch_file(file)
    for index, place in read_index(directory).storage_data.items():
        if index.fqn == _COMMON_OBJECT:
            path = directory / place.relative_path
            return read_torch_file(path, _stored_bytes(path, place))[0]
    return {}


def common_names(directory: Path) -> list[str]:
    """What the values that belong to no rank name besides the few harmless things of torch and
    Python; see `foreign_names`.

    Raises:
        InputError: They, or the index, are damaged.
    """
    file = directory / COMMON_FILE
    if file.is_file():
        return _foreign_names(file, COMMON_FILE, file)
    for index, place in read_index(directory).storage_data.items():
        if index.fqn == _COMMON_OBJECT:
            path = directory / place.relative_path
            return _foreign_names(path, index.fqn, _stored_bytes(path, place))
    return []


def _foreign_names(path: Path, what: str, content: Path | IO[bytes]) -> list[str]:
    """`foreign_names` of what `torch.save` wrote."""
    try:
        with zipfile.ZipFile(content) as archive:
            pickles = [archive.read(name) for name in archive.namelist() if name.endswith(".pkl")]
        return sorted({name for each in pickles for name in foreign_names(io.BytesIO(each))})
    # Damaged bytes may make the unpickler raise anything.
    except Exception as error:
        raise InputError(f"{path}: {what} cannot be read ({error!r}); copy it again") from error


def _stored_bytes(path: Path, place: Any) -> io.BytesIO:
    """A stored object, from where the index says that it lies."""
    with path.open("rb") as file:
        file.seek(place.offset)
        return io.BytesIO(file.read(place.length))


def require_harmless(directory: Path, *, objects: bool) -> None:
    """Makes sure that torch, which trusts pickles, runs no code when it reads a checkpoint.

    The index and the stored objects are looked into first; tensors and common.pt it reads safely
    by itself.

    Args:
        directory: Of a whole checkpoint.
        objects: Stored objects will be read, and not the weights alone.

    Raises:
        InputError: A pickle names something else than data, or cannot be read.
    """
    index_file = directory / ".metadata"
    try:
        with index_file.open("rb") as file:
            names = foreign_names(file)
    # Damaged bytes may make the unpickler raise anything.
    except Exception as error:
        raise InputError(
            f"{index_file}: the index cannot be read ({error!r}); copy it again"
        ) from error
    _refuse(index_file, "the index", names)
    metadata = read_index(directory)
    for index, place in metadata.storage_data.items() if objects else ():
        if isinstance(metadata.state_dict_metadata.get(index.fqn), TensorStorageMetadata):
            continue
        path = directory / place.relative_path
        _refuse(path, index.fqn, _foreign_names(path, index.fqn, _stored_bytes(path, place)))


def _refuse(path: Path, what: str, foreign: list[str]) -> None:
    if foreign:
        raise InputError(
            f"{path}: reading {what} would run {', '.join(foreign)}, which is no part of a "
            "checkpoint; do not use this checkpoint"
        )


def indexed_sizes(metadata: Metadata) -> dict[str, int]:
    """Bytes that each shard file must have at least, by file name."""
    sizes: dict[str, int] = {}
    for place in metadata.storage_data.values():
        end = place.offset + place.length
        sizes[place.relative_path] = max(end, sizes.get(place.relative_path, 0))
    return sizes


class TorchDistReader:
    """Reads parts of stored tensors; only the blocks that overlap a part are held."""

    def __init__(self, directory: Path) -> None:
        """
        Raises:
            InputError: A file is missing, shorter than the index says, or the index is damaged.
        """
        self._directory = directory
        self._metadata = read_index(directory)
        self._stored = {
            key: stored
            for key, stored in self._metadata.state_dict_metadata.items()
            if isinstance(stored, TensorStorageMetadata)
        }
        self._check_files()

    @property
    def tensors(self) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
        """Shape and dtype of every stored tensor."""
        return {
            key: (tuple(stored.size), stored.properties.dtype)
            for key, stored in self._stored.items()
        }

    def read(self, key: str, offset: tuple[int, ...], shape: tuple[int, ...]) -> torch.Tensor:
        """A part of a stored tensor.

        Args:
            key: Of the tensor.
            offset: Of the part, one number per axis of the tensor.
            shape: Of the part, likewise.

        Raises:
            InputError: The stored blocks do not cover the part, or one cannot be read.
        """
        stored = self._stored[key]
        result, covered = None, 0
        for chunk in stored.chunks:
            overlap = [
                (max(a, b), min(a + m, b + n))
                for a, m, b, n in zip(offset, shape, chunk.offsets, chunk.sizes, strict=True)
            ]
            if any(first >= last for first, last in overlap):
                continue
            block = self._load(MetadataIndex(key, chunk.offsets))
            if tuple(chunk.offsets) == offset and tuple(chunk.sizes) == shape:
                return block
            if result is None:
                result = torch.empty(shape, dtype=stored.properties.dtype)
            target = result[_slices(overlap, offset)]
            target.copy_(block[_slices(overlap, chunk.offsets)])
            covered += target.numel()
        if result is None or covered != result.numel():
            raise InputError(f"{self._directory}: its blocks of {key} leave gaps; copy it again")
        return result

    def _load(self, index: MetadataIndex) -> torch.Tensor:
        place = self._metadata.storage_data[index]
        path = self._directory / place.relative_path
        try:
            with path.open("rb") as file:
                view = cast(IO[bytes], _create_file_view(file, place.offset, place.length))
                return torch.load(view, map_location="cpu", weights_only=True)
        # Damaged bytes may make torch raise anything.
        except Exception as error:
            raise InputError(f"{path}: {index.fqn} cannot be read ({error})") from error

    def _check_files(self) -> None:
        for name, end in sorted(indexed_sizes(self._metadata).items()):
            file = self._directory / name
            if not file.is_file():
                raise InputError(f"{file} is missing, which the checkpoint's index names")
            if file.stat().st_size < end:
                raise InputError(
                    f"{file} has {file.stat().st_size} of {end} bytes; copy the checkpoint again"
                )


def _slices(overlap: list[tuple[int, int]], origin: Sequence[int]) -> tuple[slice, ...]:
    """The overlap, counted from `origin`."""
    return tuple(
        slice(first - start, last - start)
        for (first, last), start in zip(overlap, origin, strict=True)
    )
