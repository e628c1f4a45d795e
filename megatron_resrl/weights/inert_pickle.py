"""A pickle module that runs no code of the file's choosing.

Checkpoints hold, beside tensors, objects of the program that wrote them. Reading those the usual
way would import that program and call whatever the file names. Here a few harmless names of torch
and Python are what they are; anything else becomes an object that takes everything and does
nothing.
"""

from __future__ import annotations

import importlib
import pickle
from pathlib import Path
from typing import IO, Any

import torch

from megatron_resrl.errors import InputError

_EXACT = {
    "_codecs": {"encode"},
    "argparse": {"Namespace"},
    "_io": {"BytesIO"},
    "builtins": {"bytearray", "bytes", "complex", "dict", "frozenset", "list", "set", "slice"},
    "collections": {"OrderedDict"},
    "pathlib": {"Path", "PosixPath", "PurePath", "PurePosixPath"},
    "types": {"SimpleNamespace"},
    "torch": {"Size", "device"},
    "torch._utils": {"_rebuild_tensor_v2", "_rebuild_parameter"},
    "torch.distributed.checkpoint.filesystem": {"_StorageInfo", "_StoragePrefix"},
    "torch.distributed.checkpoint.metadata": {
        *("BytesStorageMetadata", "ChunkStorageMetadata", "Metadata", "MetadataIndex"),
        *("StorageMeta", "TensorProperties", "TensorStorageMetadata", "_MEM_FORMAT_ENCODING"),
    },
    # What each rank wrote, which megatron-core keeps in the index.
    "torch.distributed.checkpoint.planner": {
        *("SavePlan", "TensorWriteData", "WriteItem", "WriteItemType"),
    },
    "torch.nn.parameter": {"Parameter"},
    "torch.serialization": {"_get_layout"},
    "torch.storage": {"UntypedStorage", "TypedStorage"},
}


_RENAMED = {"pathlib._local": "pathlib"}
"""Modules by the names that other versions of Python pickle; 3.13 has this one."""


class Inert:
    """Stands in for an object of a class that is not needed."""

    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    def __call__(self, *_: Any, **__: Any) -> Inert:
        """What a pickled call gives."""
        return Inert()

    def __setstate__(self, state: Any) -> None:
        pass

    def __setitem__(self, key: Any, value: Any) -> None:
        pass

    def add(self, value: Any) -> None:
        """Items of a pickled set."""

    def append(self, value: Any) -> None:
        """List items of a pickled object."""

    def extend(self, values: Any) -> None:
        """List items of a pickled object."""


class Unpickler(pickle.Unpickler):
    """Resolves names as the module's docstring says."""

    def find_class(self, module: str, name: str) -> Any:
        """The named object, or `Inert`."""
        return _known(module, name) or Inert


class _NameCollector(pickle.Unpickler):
    """Makes no object, and collects the names of all classes and functions."""

    def __init__(self, file: Any) -> None:
        super().__init__(file)
        self.found: set[tuple[str, str]] = set()

    def find_class(self, module: str, name: str) -> Any:
        """Notes the name."""
        self.found.add((module, name))
        return Inert

    def persistent_load(self, key: Any) -> Any:
        """Stands in for a tensor's storage."""
        return Inert()


def _known(module: str, name: str) -> Any | None:
    """A harmless object of this name; None if it is not known to be harmless."""
    module = _RENAMED.get(module, module)
    if name in _EXACT.get(module, ()):
        return getattr(importlib.import_module(module), name)
    found = getattr(torch, name, None) if module == "torch" else None
    if isinstance(found, torch.dtype) or (found and name.endswith("Storage")):
        return found
    return None


def foreign_names(pickled: Any) -> list[str]:
    """What a pickle would call or make besides the few harmless things of torch and Python.

    Args:
        pickled: A file open for reading.

    Raises:
        Exception: Whatever damaged bytes make of the unpickler.
    """
    names = _NameCollector(pickled)
    names.load()
    own = {(module.replace("__builtin__", "builtins"), name) for module, name in names.found}
    return sorted(f"{module}.{name}" for module, name in own if _known(module, name) is None)


def load(file: Any, **options: Any) -> Any:
    """`pickle.load` with `Unpickler`."""
    return Unpickler(file, **options).load()


def read_pickle(path: Path) -> Any:
    """Reads a whole file of pickled data.

    Raises:
        InputError: It is damaged.
    """
    try:
        with path.open("rb") as file:
            return load(file)
    # Damaged bytes may make the unpickler raise anything.
    except Exception as error:
        raise InputError(f"{path} cannot be read ({error!r}); copy it again") from error


def read_torch_file(path: Path, content: IO[bytes] | None = None) -> Any:
    """Reads what `torch.save` wrote.

    Args:
        path: Of the file; errors name it.
        content: What to read, if it is a part of the file only.

    Raises:
        InputError: It is damaged.
    """
    import megatron_resrl.weights.inert_pickle as this_module

    try:
        return torch.load(
            content or path, map_location="cpu", weights_only=False, pickle_module=this_module
        )
    # See `read_pickle`.
    except Exception as error:
        raise InputError(
            f"{path} cannot be read ({type(error).__name__}: {error}); copy it again"
        ) from error
