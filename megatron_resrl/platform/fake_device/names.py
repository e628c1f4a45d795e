"""Functions of torch that name CUDA or pinned memory, or have a kernel of their own there."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch._subclasses.fake_tensor import FakeTensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map

from megatron_resrl.platform.fake_device import kernels
from megatron_resrl.platform.fake_device.device import FakeDevice

_TYPE_NAMES = {torch.float32: "Float", torch.bfloat16: "BFloat16", torch.float16: "Half"}


class CudaNames(TorchFunctionMode):
    """Turns `device="cuda"` into the fake device, in all functions and methods of torch."""

    def __init__(self, device: FakeDevice, *, fused: bool = True) -> None:
        """
        Args:
            device: The device that CUDA's names stand for.
            fused: Attention and RMSNorm are single kernels, as on CUDA; False: they are taken
                apart, as on a CPU.
        """
        super().__init__()
        self.device = device
        self._handlers: dict[Any, Callable[..., Any]] = {
            torch.Tensor.cuda: lambda tensor, *args, **options: tensor.to(device.device),
            torch.Tensor.to: self._to,
            torch.Tensor.type: self._type,
            torch.Tensor.pin_memory: lambda tensor, *args: tensor.clone(),
            torch.tensor: self._tensor,
        }
        self._kernels: dict[Any, Callable[..., Any]] = {}
        if fused:
            self._kernels = {
                F.scaled_dot_product_attention: kernels.attention,
                F.rms_norm: kernels.rms_norm,
                torch.rms_norm: kernels.rms_norm,
            }

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = self._turned(kwargs or {})
        if func in self._kernels and self.device.holds(args[0]):
            out = self._kernels[func](self.device, *args, **kwargs)
            if out is not None:
                return out
        handler = self._handlers.get(func)
        return func(*args, **kwargs) if handler is None else handler(*args, **kwargs)

    def _turned(self, kwargs: dict[str, Any]) -> dict[str, Any]:
        turned = {name: value for name, value in kwargs.items() if name != "pin_memory"}
        if "device" in turned:
            turned["device"] = self._place(turned["device"])
        return turned

    def _place(self, value: Any) -> Any:
        """The fake device for "cuda", torch.device("cuda", 0) and the number of a device."""
        named = isinstance(value, (str, torch.device)) and torch.device(value).type == "cuda"
        return self.device.device if named or type(value) is int else value

    def _to(self, tensor: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        return tensor.to(*map(self._place, args), **kwargs)

    def _type(self, tensor: torch.Tensor, dtype: Any = None, *args: Any, **kwargs: Any) -> Any:
        """megatron-core compares its result with names such as torch.cuda.FloatTensor."""
        if dtype is not None or not self.device.holds(tensor):
            return tensor.type(dtype, *args, **kwargs) if dtype is not None else tensor.type()
        return f"torch.cuda.{_TYPE_NAMES.get(tensor.dtype, 'Other')}Tensor"

    def _tensor(self, data: Any, **kwargs: Any) -> torch.Tensor:
        # torch reads tensors in a list one by one, below the dispatcher.
        numbers = tree_map(lambda t: t.item() if isinstance(t, FakeTensor) else t, data)
        return torch.tensor(numbers, **kwargs)
