"""Makes `import transformer_engine` work from its Python files alone, on a CPU.

What is not Transformer Engine's own is kept small:

* Compiled functions are those of this package (`load_engine`).
* Questions about the device are answered as an H100 with CUDA 12.9 would; the one for MXFP8 as a
  B200.
* Fused attention takes fp32 as well, so that comparisons can be sharp.
* Masks of its own attention, which has no kernel, are made on the CPU. With TE_WITHOUT_CUDNN=1 it
  is the only one.
* A request of the ring of context-parallel ranks is waited for once; gloo refuses the second wait,
  which NCCL allows.
* What NCCL gathers in one call, the scales and data of blocks, gloo gathers one after the other.
"""

from __future__ import annotations

import contextlib
import inspect
import os
import sys
import textwrap
import types
from collections.abc import Iterator
from typing import Any
from unittest import mock

import torch

from compiled_in_torch import (
    attention,
    optimizers,
    packed_layouts,
    packed_ring,
    products,
    quantization,
    rotation,
)
from megatron_resrl.platform.engine_python import kinds
from megatron_resrl.platform.engine_python.load import load_engine, name_layouts_and_masks

ANSWERED = (
    *(attention, optimizers, packed_layouts, packed_ring, products, quantization, rotation),
)


def install() -> None:
    """Must run before anything imports transformer_engine or megatron-core."""
    _answer_device_queries()
    functions = (function for file in ANSWERED for function in file.FUNCTIONS)
    load_engine(functions, where="on a CPU")
    if os.environ.get("TE_WITHOUT_CUDNN"):
        compiled: Any = sys.modules["transformer_engine_torch"]
        nothing = kinds.NVTE_Fused_Attn_Backend.NVTE_No_Backend
        compiled.get_fused_attn_backend = lambda *args: nothing
    name_layouts_and_masks(attention.LAYOUTS, attention.MASKS)
    _allow_what_a_cpu_needs()
    _allow_scales_of_blocks()
    _take_engine_layers()


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


class _Once:
    """A request that is waited for once."""

    def __init__(self, request: Any) -> None:
        self._request = request

    def wait(self) -> None:
        if self._request is not None:
            self._request.wait()
        self._request = None


class _Done:
    """A request that is complete."""

    def wait(self) -> None:
        pass


@contextlib.contextmanager
def _one_after_the_other() -> Iterator[_Done]:
    """Collectives in this block run when they are called."""
    yield _Done()


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
    narrow = "[torch.float16, torch.bfloat16]"
    wide = "[torch.float16, torch.bfloat16, torch.float32]"
    _rewrite(backends, backends.FusedAttention, "forward", {narrow: wide})
    with_fp8 = "[torch.bfloat16, torch.float16, torch.float8_e4m3fn]"
    _rewrite(utils, utils, "get_attention_backend", {narrow: wide, with_fp8: wide})
    for name in ("get_padding_mask", "get_full_mask"):
        _rewrite(utils, utils, name, {'device="cuda"': 'device="cpu"'})


def _allow_scales_of_blocks() -> None:
    from transformer_engine.pytorch import quantization

    quantization.check_fp8_block_scaling_support = lambda: (True, "")
    quantization.check_mxfp8_support = lambda: (True, "")
    coalesced = torch.distributed._coalescing_manager
    # With a device it asks the backend for one call.
    torch.distributed._coalescing_manager = lambda group=None, device=None, async_ops=False: (
        coalesced(group, None, async_ops) if device is None else _one_after_the_other()
    )


def _rewrite(module: Any, owner: Any, name: str, changes: dict[str, str]) -> None:
    """Exchanges parts of a function's source, at least one of which it has."""
    source = textwrap.dedent(inspect.getsource(getattr(owner, name)))
    changed = source
    for own, other in changes.items():
        changed = changed.replace(own, other)
    if changed == source:
        raise RuntimeError(f"{module.__name__}.{name} has none of {list(changes)} any longer")
    scope: dict[str, Any] = {}
    exec(compile(changed, f"{module.__file__} ({name})", "exec"), vars(module), scope)
    setattr(owner, name, scope[name])


def _take_engine_layers() -> None:
    """Makes the product choose these layers although there is no CUDA device."""
    from megatron_resrl.policy import layer_spec

    layer_spec.uses_transformer_engine = lambda: True
