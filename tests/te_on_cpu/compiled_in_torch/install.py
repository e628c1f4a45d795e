"""Makes `import transformer_engine` work from its Python files alone, on a CPU.

What is not Transformer Engine's own is kept small:

* `transformer_engine_torch` is a module of this package's functions; any other one raises when it
  is called. What is only imported (ONNX) is a mock.
* Questions about the device are answered as an H100 would.
* Fused attention takes fp32 as well, so that comparisons can be sharp.
* A request of the ring of context-parallel ranks is waited for once; gloo refuses the second wait,
  which NCCL allows.
"""

from __future__ import annotations

import importlib.machinery
import importlib.util
import inspect
import re
import sys
import textwrap
import types
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from compiled_in_torch import attention, kinds, optimizers, packed_ring, products, quantization

_ANSWERED = (attention, optimizers, packed_ring, products, quantization)
_TRITON = (
    "transformer_engine.pytorch.triton",
    "transformer_engine.pytorch.triton.cross_entropy",
    "transformer_engine.pytorch.triton.pad",
    "transformer_engine.pytorch.triton.permutation",
)
"""Modules of Triton's kernels."""


def install() -> None:
    """Must run before anything imports transformer_engine or megatron-core."""
    sys.modules["transformer_engine_torch"] = _compiled_module()
    for name in ("onnxscript", "onnx", "onnx_ir"):
        if importlib.util.find_spec(name) is None:
            sys.modules[name] = _specified(mock.MagicMock(), name)
    for name in _TRITON:
        sys.modules[name] = _unanswered_module(name)
    _answer_device_queries()
    _load_python_files()
    _name_layouts_and_masks()
    _allow_what_a_cpu_needs()
    _take_engine_layers()


class _Unanswered:
    """A compiled function that has no answer here, or an enumeration, whose members are names."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __getattr__(self, member: str) -> str:
        if member.startswith("__"):
            raise AttributeError(member)
        return f"{self._name}.{member}"

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        raise NotImplementedError(f"{self._name} is not answered on a CPU")


def _compiled_module() -> types.ModuleType:
    """`transformer_engine_torch`."""
    module = _unanswered_module("transformer_engine_torch")
    for enumeration in kinds.ENUMERATIONS:
        setattr(module, enumeration.__name__, enumeration)
    for name in ("CommOverlap", "CommOverlapP2P", "CommOverlapHelper", "CommOverlapBase"):
        setattr(module, name, type(name, (), {}))  # Types in annotations and isinstance().
    module.get_cublasLt_version = lambda: 130000
    module.get_cudnn_version = lambda: 91400
    module.get_num_cublas_streams = lambda: 4
    fused = kinds.NVTE_Fused_Attn_Backend.NVTE_F16_arbitrary_seqlen
    module.get_fused_attn_backend = lambda *args: fused
    for function in (function for file in _ANSWERED for function in file.FUNCTIONS):
        setattr(module, function.__name__, function)
    own = {name for name in vars(module) if not name.startswith("_")}
    module.__all__ = sorted(own | _names_used())  # Some of its files import all.
    return module


def _unanswered_module(name: str) -> types.ModuleType:
    module = _specified(types.ModuleType(name), name)

    def attribute(wanted: str) -> _Unanswered:
        if wanted.startswith("__"):
            raise AttributeError(wanted)
        return _Unanswered(f"{name}.{wanted}")

    module.__getattr__ = attribute
    return module


def _specified(module: Any, name: str) -> Any:
    module.__spec__ = importlib.machinery.ModuleSpec(name, None)
    return module


def _names_used() -> set[str]:
    """Every name of the compiled module that Transformer Engine's files mention."""
    found: set[str] = set()
    root = Path(importlib.util.find_spec("transformer_engine").submodule_search_locations[0])
    for file in (root / "pytorch").rglob("*.py"):
        text = file.read_text(encoding="utf-8")
        found |= set(re.findall(r"\btex\.([A-Za-z]\w*)", text))
        for names in re.findall(r"from transformer_engine_torch import \(?([\w\s,]+)\)?", text):
            found |= set(re.findall(r"[A-Za-z]\w*", names))
    return found


def _answer_device_queries() -> None:
    """As an H100 would, while tensors lie in the CPU's memory."""
    h100 = types.SimpleNamespace(
        major=9, minor=0, total_memory=80 << 30, multi_processor_count=132, name="H100"
    )
    torch.cuda.get_device_properties = lambda *args: h100
    torch.cuda.get_device_capability = lambda *args: (h100.major, h100.minor)
    torch.cuda.is_current_stream_capturing = lambda: False
    torch.cuda.current_device = lambda: torch.device("cpu")
    torch.cuda.synchronize = lambda *args: None
    torch.Tensor.is_cuda = property(lambda self: True)


def _load_python_files() -> None:
    """Imports transformer_engine; the library it wants to load is there already."""
    spec = importlib.util.find_spec("transformer_engine")
    package = importlib.util.module_from_spec(spec)
    sys.modules["transformer_engine"] = package
    common = importlib.import_module("transformer_engine.common")
    package.common = common
    common.load_framework_extension = lambda name: None
    spec.loader.exec_module(package)


def _name_layouts_and_masks() -> None:
    """Tells our functions which layout and mask of attention a member of theirs stands for."""
    fused_attn = importlib.import_module("transformer_engine.pytorch.cpp_extensions.fused_attn")
    for table, members in (
        (attention.LAYOUTS, fused_attn.QKVLayout),
        (attention.MASKS, fused_attn.AttnMaskType),
    ):
        table |= {member: name for name, member in members.items()}


class _Once:
    """A request that is waited for once."""

    def __init__(self, request: Any) -> None:
        self._request = request

    def wait(self) -> None:
        if self._request is not None:
            self._request.wait()
        self._request = None


def _allow_what_a_cpu_needs() -> None:
    from transformer_engine.pytorch import distributed
    from transformer_engine.pytorch.attention.dot_product_attention import (
        backends,
        context_parallel,
        utils,
    )
    from transformer_engine.pytorch.module.base import TransformerEngineBaseModule

    distributed._get_cuda_rng_state = lambda *args, **kwargs: torch.get_rng_state()
    distributed._set_cuda_rng_state = lambda state, *args, **kwargs: torch.set_rng_state(state)
    exchange = context_parallel.flash_attn_p2p_communicate
    context_parallel.flash_attn_p2p_communicate = lambda *args: [_Once(r) for r in exchange(*args)]
    construct = TransformerEngineBaseModule.__init__

    def construct_as_on_cuda(*args: Any, **kwargs: Any) -> None:
        with mock.patch.object(torch.cuda, "is_available", return_value=True):
            construct(*args, **kwargs)

    TransformerEngineBaseModule.__init__ = construct_as_on_cuda
    _also_fp32(backends, backends.FusedAttention, "forward")
    _also_fp32(utils, utils, "get_attention_backend")


def _also_fp32(module: Any, owner: Any, name: str) -> None:
    """Rewrites a function that takes 16-bit tensors only."""
    source = textwrap.dedent(inspect.getsource(getattr(owner, name)))
    wider = source.replace(
        "[torch.float16, torch.bfloat16]", "[torch.float16, torch.bfloat16, torch.float32]"
    ).replace(
        "[torch.bfloat16, torch.float16, torch.float8_e4m3fn]",
        "[torch.bfloat16, torch.float16, torch.float32]",
    )
    if wider == source:
        raise RuntimeError(f"{module.__name__}.{name} no longer lists the types it takes")
    scope: dict[str, Any] = {}
    exec(compile(wider, f"{module.__file__} ({name})", "exec"), vars(module), scope)
    setattr(owner, name, scope[name])


def _take_engine_layers() -> None:
    """Makes the product choose these layers although there is no CUDA device."""
    from megatron_resrl.policy import layer_spec

    layer_spec.uses_transformer_engine = lambda: True
