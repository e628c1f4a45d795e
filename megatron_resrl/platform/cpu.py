"""Adapts megatron-core to a machine without CUDA. Only `repairs` patches it, too.

megatron-core names CUDA devices, streams and random generators literally. Where CUDA is absent
these names cannot work, so this module redirects them to the CPU's equivalents. On a machine with
CUDA nothing is redirected.
"""

from __future__ import annotations

import functools
import logging
import warnings
from collections.abc import Callable
from typing import Any

import torch
import torch.cuda.nvtx
from torch.utils._device import _device_constructors

from megatron_resrl.platform.megatron_versions import require_triton, silence_notices
from megatron_resrl.platform.one_queue import answer_streams
from megatron_resrl.platform.repairs import name_pathlib_as_python_3_13, repair_megatron_core

logger = logging.getLogger(__name__)

_FACTORIES = (
    *("zeros", "ones", "empty", "full", "rand", "randn"),
    *("zeros_like", "ones_like", "empty_like", "full_like", "rand_like", "randn_like"),
    *("tensor", "as_tensor", "arange", "linspace", "randint"),
)
_HARMLESS_WARNINGS = (
    r".*(Apex|Transformer Engine|transformer_engine).*",
    r".*[Ff]alling back to Torch.*",
    r".*absl\.logging is not installed.*",
    r".*CUDA_DEVICE_MAX_CONNECTIONS.*",
    r".*full scope is deprecated.*",
    r".*torch\.distributed\.(reduce_scatter_tensor|all_gather_into_tensor)` is deprecated.*",
    r"The \.grad attribute of a Tensor that is not a leaf.*",
)
"""Warnings of megatron-core about CUDA's absence or its own code, which a user cannot change."""

_adapted = False


def adapt_megatron_core() -> None:
    """Redirects CUDA names to the CPU where CUDA is absent, and repairs megatron-core.

    Must run before megatron-core builds a model, because some of its modules look devices up
    while they are constructed. A second call does nothing.

    Raises:
        InputError: megatron-core lacks a library that it imports.
    """
    global _adapted
    if _adapted:
        return
    require_triton()
    _adapted = True
    silence_notices()
    if not torch.cuda.is_available():
        _redirect_to_cpu()
    repair_megatron_core()
    name_pathlib_as_python_3_13()


def _redirect_to_cpu() -> None:
    for message in _HARMLESS_WARNINGS:
        warnings.filterwarnings("ignore", message=message)
    _redirect_device_queries()
    _redirect_random_state()
    answer_streams(lambda: None)
    _redirect_factories()
    _name_tensor_types_as_cuda()
    _keep_counts_on_host()
    _leave_own_buffers_in_place()
    logger.info("CUDA is absent: megatron-core is adapted to the CPU (gloo, local layers)")


def _redirect_device_queries() -> None:
    cpu = torch.device("cpu")
    torch.cuda.current_device = lambda: cpu
    torch.cuda.synchronize = lambda *args, **kwargs: None
    torch.cuda.empty_cache = lambda: None
    torch.Tensor.cuda = lambda self, *args, **kwargs: self
    torch.nn.Module.cuda = lambda self, *args, **kwargs: self
    torch.cuda.nvtx.range_push = lambda *args, **kwargs: 0
    torch.cuda.nvtx.range_pop = lambda *args, **kwargs: 0


def _redirect_random_state() -> None:
    """The tensor-parallel random tracker saves and restores the CPU generator instead."""
    from megatron.core.tensor_parallel import random as tracker

    def get_state(*args: Any, **kwargs: Any) -> torch.Tensor:
        return torch.get_rng_state()

    def set_state(state: torch.Tensor, *args: Any, **kwargs: Any) -> None:
        torch.set_rng_state(state)

    torch.cuda.manual_seed = lambda seed: torch.manual_seed(seed)
    torch.cuda.get_rng_state = get_state
    torch.cuda.set_rng_state = set_state
    tracker._get_cuda_rng_state = get_state
    tracker._set_cuda_rng_state = set_state


def _is_cuda(device: Any) -> bool:
    if isinstance(device, torch.device):
        return device.type == "cuda"
    return isinstance(device, str) and device.startswith("cuda")


def _redirect_factories() -> None:
    """`device="cuda"` and `pin_memory=True` mean plain CPU memory."""
    # `with torch.device(...)` knows the factories by identity, from a list that torch makes at its
    # first use. Made now, the list holds the originals, which the wrappers below call.
    _device_constructors()

    def on_cpu(factory: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(factory)
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            if _is_cuda(kwargs.get("device")):
                kwargs["device"] = "cpu"
            if kwargs.get("pin_memory"):
                kwargs["pin_memory"] = False
            return factory(*args, **kwargs)

        return wrapped

    for name in _FACTORIES:
        setattr(torch, name, on_cpu(getattr(torch, name)))
    to = torch.Tensor.to

    @functools.wraps(to)
    def to_cpu(self: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        if args and _is_cuda(args[0]):
            args = ("cpu", *args[1:])
        if _is_cuda(kwargs.get("device")):
            kwargs["device"] = "cpu"
        return to(self, *args, **kwargs)

    torch.Tensor.to = to_cpu


def _name_tensor_types_as_cuda() -> None:
    """megatron-core's optimizers compare `Tensor.type()` with torch.cuda.FloatTensor and so on."""
    type_of = torch.Tensor.type

    @functools.wraps(type_of)
    def cuda_type_of(self: torch.Tensor, dtype: Any = None, *args: Any, **kwargs: Any) -> Any:
        if dtype is not None:
            return type_of(self, dtype, *args, **kwargs)
        name = type_of(self)
        return name.replace("torch.", "torch.cuda.", 1) if self.device.type == "cpu" else name

    torch.Tensor.type = cuda_type_of


def _keep_counts_on_host() -> None:
    """Token counts of experts become lists; megatron-core does so only with counts on CUDA."""
    from megatron.core.transformer.moe import moe_utils, token_dispatcher

    def on_host(tensor: Any, as_numpy: bool = False, record_stream: bool = False) -> Any:
        return tensor.numpy() if as_numpy and torch.is_tensor(tensor) else tensor

    moe_utils.maybe_move_tensor_to_cpu = on_host
    token_dispatcher.maybe_move_tensor_to_cpu = on_host


def _leave_own_buffers_in_place() -> None:
    """A rank sends no gradients and weights to itself alone: gloo copies them, NCCL does not."""
    from megatron.core.distributed import param_and_grad_buffer

    def without_copies(collective: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(collective)
        def wrapped(
            output: torch.Tensor, source: torch.Tensor, *args: Any, group: Any, **options: Any
        ) -> Any:
            alone = group.size() == 1 and output.data_ptr() == source.data_ptr()
            if alone and not options.get("async_op"):
                return None
            return collective(output, source, *args, group=group, **options)

        return wrapped

    for name in ("dist_all_gather_func", "dist_reduce_scatter_func"):
        setattr(param_and_grad_buffer, name, without_copies(getattr(param_and_grad_buffer, name)))
