"""Safetensors files of a Hugging Face model directory: their headers, and how they are written."""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from megatron_resrl.errors import InputError

INDEX = "model.safetensors.index.json"


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
    """Shape of every tensor in a directory's safetensors files; see `stored_tensors`."""
    return {name: tensor.shape for name, tensor in stored_tensors(directory).items()}


def stored_tensors(directory: str | Path) -> dict[str, StoredTensor]:
    """Every tensor in a directory's safetensors files, read from their headers.

    Args:
        directory: Of a Hugging Face model; its index, where there is one, says which file holds
            which tensor.

    Raises:
        InputError: There is no file, or one cannot be read, the index included.
    """
    directory = Path(directory)
    file_of: dict[str, str] | None = None
    if (directory / INDEX).is_file():
        file_of = _read_index(directory / INDEX)
        files = sorted({directory / file for file in file_of.values()})
    else:
        files = sorted(directory.glob("*.safetensors"))
    if not files:
        raise InputError(f"{str(directory)!r} has no *.safetensors file")
    stored = {}
    for file in files:
        for name, tensor in _header(file).items():
            if file_of is None or file_of.get(name) == file.name:
                stored[name] = tensor
    return stored


def _read_index(path: Path) -> dict[str, str]:
    try:
        return dict(json.loads(path.read_text())["weight_map"])
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{path} cannot be read ({type(error).__name__}: {error}); fetch the model again"
        ) from error


def _header(file: Path) -> dict[str, StoredTensor]:
    try:
        with safe_open(file, framework="pt") as tensors:
            slices = {name: tensors.get_slice(name) for name in tensors.offset_keys()}
            return {name: _described(file, part) for name, part in slices.items()}
    except (OSError, SafetensorError) as error:
        raise InputError(f"{file} cannot be read ({error}); fetch the model again") from error


def _described(file: Path, tensor: Any) -> StoredTensor:
    shape = tuple(tensor.get_shape())
    bits = int(re.search(r"\d+", tensor.get_dtype() + "8")[0])
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
        self._held: dict[str, torch.Tensor] = {}
        self._parts: list[list[str]] = []

    def add(self, name: str, tensor: torch.Tensor) -> None:
        """Takes a copy of the tensor; may write a file."""
        held = sum(value.nbytes for value in self._held.values())
        if self._held and held + tensor.nbytes > self.shard_bytes:
            self._write_part()
        # A copy, because safetensors refuses tensors that share memory, as halves of one do.
        self._held[name] = tensor.cpu().contiguous().clone()
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
        self._parts.append(list(self._held))
        save_file(self._held, self._part(len(self._parts)), metadata={"format": "pt"})
        self._held = {}
