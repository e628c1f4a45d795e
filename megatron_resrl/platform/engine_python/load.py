"""Makes `import transformer_engine` work from its Python files alone.

What is not Transformer Engine's own is kept small: `transformer_engine_torch` is a module of the
functions that are given, and any other one raises when it is called. What is only imported (ONNX)
is a mock.
"""

from __future__ import annotations

import importlib.machinery
import importlib.util
import os
import sys
import types
from collections.abc import Iterable
from typing import Any
from unittest import mock

from megatron_resrl.platform.engine_python import kinds
from megatron_resrl.platform.engine_python.files import compiled_names, find_engine

_COMPILED = "transformer_engine_torch"
_TRITON = (
    "transformer_engine.pytorch.triton",
    "transformer_engine.pytorch.triton.cross_entropy",
    "transformer_engine.pytorch.triton.pad",
    "transformer_engine.pytorch.triton.permutation",
)
"""Modules of Triton's kernels."""


def load_engine(functions: Iterable[Any], *, where: str) -> None:
    """Imports Transformer Engine's Python with these functions as its compiled ones.

    Must run before anything imports transformer_engine or megatron-core.

    Args:
        functions: Named as the compiled ones.
        where: Ends the message of a function that is not among them: "on a CPU".

    Raises:
        ModuleNotFoundError: The package is not there.
    """
    spec = find_engine()
    if spec is None:
        raise ModuleNotFoundError("transformer_engine is not installed")
    os.environ["NVTE_PROJECT_BUILDING"] = "1"  # Its package then loads no library.
    sys.modules[_COMPILED] = _compiled_module(spec, functions, where)
    for name in ("onnxscript", "onnx", "onnx_ir"):
        if importlib.util.find_spec(name) is None:
            sys.modules[name] = _specified(mock.MagicMock(), name)
    for name in _TRITON:
        sys.modules[name] = _unanswered_module(name, where)
    _import_files(spec)


def name_layouts_and_masks(layouts: dict[Any, str], masks: dict[Any, str]) -> None:
    """Fills tables: Transformer Engine's member of an enumeration -> its name."""
    fused: Any = importlib.import_module("transformer_engine.pytorch.cpp_extensions.fused_attn")
    for table, members in ((layouts, fused.QKVLayout), (masks, fused.AttnMaskType)):
        table |= {member: name for name, member in members.items()}


class _Unanswered:
    """A compiled function that has no answer, or an enumeration, whose members are names."""

    def __init__(self, name: str, where: str) -> None:
        self._name = name
        self._where = where

    def __getattr__(self, member: str) -> str:
        if member.startswith("__"):
            raise AttributeError(member)
        return f"{self._name}.{member}"

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        raise NotImplementedError(f"{self._name} is not answered {self._where}")


def _compiled_module(
    spec: importlib.machinery.ModuleSpec, functions: Iterable[Any], where: str
) -> types.ModuleType:
    module: Any = _unanswered_module(_COMPILED, where)
    for enumeration in kinds.ENUMERATIONS:
        setattr(module, enumeration.__name__, enumeration)
    for name in ("CommOverlap", "CommOverlapP2P", "CommOverlapHelper", "CommOverlapBase"):
        setattr(module, name, type(name, (), {}))  # Types in annotations and isinstance().
    module.get_cublasLt_version = lambda: 130000
    module.get_cudnn_version = lambda: 91400
    module.get_num_cublas_streams = lambda: 4
    fused = kinds.NVTE_Fused_Attn_Backend.NVTE_F16_arbitrary_seqlen
    module.get_fused_attn_backend = lambda *args: fused
    for function in functions:
        setattr(module, function.__name__, function)
    own = {name for name in vars(module) if not name.startswith("_")}
    module.__all__ = sorted(own | compiled_names(spec))  # Some of its files import all.
    return module


def _unanswered_module(name: str, where: str) -> types.ModuleType:
    module = _specified(types.ModuleType(name), name)

    def attribute(wanted: str) -> _Unanswered:
        if wanted.startswith("__"):
            raise AttributeError(wanted)
        return _Unanswered(f"{name}.{wanted}", where)

    module.__getattr__ = attribute
    return module


def _specified(module: Any, name: str) -> Any:
    module.__spec__ = importlib.machinery.ModuleSpec(name, None)
    return module


def _import_files(spec: importlib.machinery.ModuleSpec) -> None:
    """Imports the package; the library that it wants to load is there already."""
    package: Any = importlib.util.module_from_spec(spec)
    sys.modules["transformer_engine"] = package
    common: Any = importlib.import_module("transformer_engine.common")
    package.common = common
    common.load_framework_extension = lambda name: None
    assert spec.loader is not None, "a package of files has a loader"
    spec.loader.exec_module(package)
