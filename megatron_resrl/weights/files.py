"""Safetensors files of a Hugging Face model: which are read, their headers, how they are written.

Importing this needs no torch: recipes are checked with it.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError, safe_open

from megatron_resrl.errors import InputError

if TYPE_CHECKING:
    import torch

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"

_SHARD = re.compile(r"(.+)-(\d+)-of-(\d+)\.safetensors")


class WeightsNotHere(InputError):
    """Weight files are not on this machine, or this user may not read them."""


@dataclass(frozen=True)
class StoredTensor:
    """One tensor of a safetensors file, as the file's header describes it."""

    file: Path
    shape: tuple[int, ...]
    dtype: str
    """safetensors' name, e.g. BF16."""
    size: int
    """Bytes."""


def stored_shapes(directory: str | Path) -> dict[str, tuple[int, ...]]:
    """Shape of every tensor of a model's files; see `stored_tensors`."""
    return {name: tensor.shape for name, tensor in stored_tensors(directory).items()}


def stored_tensors(directory: str | Path) -> dict[str, StoredTensor]:
    """Every tensor of a model's files, read from their headers; see `weight_files`.

    Args:
        directory: Of a Hugging Face model.

    Raises:
        InputError: It is not clear which files are the model's, or one cannot be read.
    """
    directory = Path(directory)
    file_of = _indexed(directory)
    stored = {}
    for file in weight_files(directory):
        for name, tensor in _header(file).items():
            if file_of is None or file_of.get(name) == file.name:
                stored[name] = tensor
    return stored


def weight_files(directory: str | Path) -> list[Path]:
    """The safetensors files that hold the model.

    The files that the index names. Without an index: model.safetensors, whatever else lies there
    (as in transformers); else the only safetensors file; else the only whole set of numbered files.

    Raises:
        InputError: There is none, a set is not whole, several may be meant, or a file that the
            index names is not there.
    """
    directory = Path(directory)
    file_of = _indexed(directory)
    if file_of is None:
        return [directory / name for name in _without_index(directory)]
    names = sorted(set(file_of.values()))
    missing = [name for name in names if not (directory / name).exists()]
    if missing:
        raise WeightsNotHere(f"{directory} lacks {', '.join(missing)}; fetch the model again")
    if WEIGHTS not in names and (directory / WEIGHTS).is_file():
        raise InputError(
            f"{directory} holds the weights twice: {WEIGHTS}, which transformers reads, and "
            f"{', '.join(names[:2])} ..., which {INDEX} names and vLLM reads; remove one of the two"
        )
    return [directory / name for name in names]


def _indexed(directory: Path) -> dict[str, str] | None:
    """The file of every tensor as the index says; None without one."""
    path = directory / INDEX
    if not path.is_file():
        return None
    try:
        file_of = dict(json.loads(path.read_text(encoding="utf-8"))["weight_map"])
        if not file_of or not all(isinstance(file, str) for file in file_of.values()):
            raise ValueError("its weight_map names no files")
    except OSError as error:
        raise _unreadable(path, error) from error
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{path} cannot be read ({type(error).__name__}: {error}); fetch the model again"
        ) from error
    return file_of


def _without_index(directory: Path) -> Collection[str]:
    found = sorted(file.name for file in directory.glob("*.safetensors"))
    if not found:
        raise WeightsNotHere(f"{directory} has no *.safetensors file; fetch the model again")
    if WEIGHTS in found:
        return [WEIGHTS]
    if len(found) == 1 and not _SHARD.fullmatch(found[0]):
        return found
    shards = [match for name in found if (match := _SHARD.fullmatch(name))]
    sets = {(match[1], int(match[3])) for match in shards}
    if len(sets) != 1 or len(shards) != len(found):
        raise InputError(
            f"{directory} has neither {WEIGHTS} nor {INDEX}, and several files that may be meant: "
            f"{', '.join(found)}; remove those that are not of the model, or name its own {WEIGHTS}"
        )
    ((_, count),) = sets
    if {int(match[2]) for match in shards} != set(range(1, count + 1)):
        raise InputError(
            f"{directory} has {len(found)} of the {count} files of its model: {', '.join(found)}; "
            "fetch the model again"
        )
    return found


def _header(file: Path) -> dict[str, StoredTensor]:
    try:
        # safetensors says of every failure to open a file that it does not exist.
        with file.open("rb"):
            pass
        with safe_open(file, framework="np") as tensors:
            slices = {name: tensors.get_slice(name) for name in tensors.offset_keys()}
            return {name: _described(file, part) for name, part in slices.items()}
    except OSError as error:
        raise _unreadable(file, error) from error
    except SafetensorError as error:
        raise InputError(
            f"{file} cannot be read (cut short or damaged: {error}); fetch the model again"
        ) from error


def _unreadable(path: Path, error: OSError) -> WeightsNotHere:
    right = isinstance(error, PermissionError)
    remedy = "give this user the right to read it" if right else "fetch the model again"
    return WeightsNotHere(f"{path} cannot be read ({error.strerror or error}); {remedy}")


def _described(file: Path, tensor: Any) -> StoredTensor:
    shape = tuple(tensor.get_shape())
    # BOOL is the only type without its number of bits.
    bits = int((re.search(r"\d+", tensor.get_dtype()) or ["8"])[0])
    return StoredTensor(file, shape, tensor.get_dtype(), math.prod(shape) * bits // 8)


class ShardWriter:
    """Writes named tensors as Hugging Face's safetensors files while they arrive.

    One file, or several and an index; never more than one file's tensors are held in memory.
    """

    def __init__(self, directory: Path, shard_bytes: int) -> None:
        """
        Args:
            directory: Exists; weight files in it are replaced when the writer is closed.
            shard_bytes: Largest size of a file that holds more than one tensor.
        """
        self.directory = directory
        self.shard_bytes = shard_bytes
        self.total_bytes = 0
        self._pending: dict[str, torch.Tensor] = {}
        self._parts: list[list[str]] = []

    def add(self, name: str, tensor: torch.Tensor) -> None:
        """Takes a copy of the tensor; may write a file."""
        pending_bytes = sum(value.nbytes for value in self._pending.values())
        if self._pending and pending_bytes + tensor.nbytes > self.shard_bytes:
            self._write_part()
        # A copy, because safetensors refuses tensors that share memory, as halves of one do.
        self._pending[name] = tensor.cpu().contiguous().clone()
        self.total_bytes += tensor.nbytes

    def close(self) -> None:
        """Writes what is left, and gives all files their names."""
        self._write_part()
        for stale in [*self.directory.glob("*.safetensors"), self.directory / INDEX]:
            stale.unlink(missing_ok=True)
        weight_map: dict[str, str] = {}
        count = len(self._parts)
        for number, names in enumerate(self._parts, start=1):
            file = f"model-{number:05d}-of-{count:05d}.safetensors"
            file = file if count > 1 else "model.safetensors"
            self._part(number).rename(self.directory / file)
            weight_map |= dict.fromkeys(names, file)
        if count > 1:
            index = {"metadata": {"total_size": self.total_bytes}, "weight_map": weight_map}
            (self.directory / INDEX).write_text(json.dumps(index, indent=2))

    def _part(self, number: int) -> Path:
        return self.directory / f"part-{number:05d}"

    def _write_part(self) -> None:
        from safetensors.torch import save_file  # Here, because reading headers needs no torch.

        self._parts.append(list(self._pending))
        save_file(self._pending, self._part(len(self._parts)), metadata={"format": "pt"})
        self._pending = {}
