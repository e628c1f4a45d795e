"""The device: sends what touches it to torch's FakeTensorMode, and keeps the books."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.testing._internal.distributed import fake_pg  # noqa: F401  Registers the back end.
from torch.utils import backend_registration
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

from megatron_resrl.errors import InputError
from megatron_resrl.platform.fake_device.collectives import GroupNames, Received, run_collective
from megatron_resrl.platform.fake_device.ledger import Ledger
from megatron_resrl.platform.fake_device.lines import KindRule, caller
from megatron_resrl.platform.fake_device.memory import Memory
from megatron_resrl.platform.fake_device.numbers import LARGEST, KnownNumbers
from megatron_resrl.platform.fake_device.transfers import HANDLERS
from megatron_resrl.platform.fake_device.work import count

NAME = "fakegpu"
"""The device's type."""

_KERNELS = torch.library.Library("aten", "IMPL")
_ONE_KERNEL = ("silu_backward", "mish_backward")
"""Operations that torch takes apart on devices without a kernel for them; CUDA and CPU have one."""

_SIZED = {
    *(torch.ops.aten.zeros.default, torch.ops.aten.ones.default, torch.ops.aten.full.default),
    torch.ops.aten.empty.memory_format,
}
"""Operations whose first argument is the size of their result."""

Answer = Callable[[Mapping[str, Any], torch.Tensor], torch.Tensor | None]
"""(local variables of the function that reads, tensor) -> the numbers that it is to read; None: the
usual ones."""


def register_device() -> torch.device:
    """Makes the device known to torch, once per process.

    It is torch's PrivateUse1, set up from Python: FakeTensorMode with "cuda" goes forward but not
    backward on a machine without CUDA.

    Raises:
        InputError: This torch is too old for it.
    """
    if not hasattr(backend_registration, "_DummyBackendModule"):
        raise InputError(
            "a dry run needs a device that is registered from Python, which torch "
            f"{torch.__version__} cannot do; install the torch of constraints.txt, or use "
            "plan --quick"
        )
    module = backend_registration._DummyBackendModule()
    module.get_amp_supported_dtype = lambda: [torch.bfloat16, torch.float16]  # type: ignore[attr-defined]
    backend_registration._setup_privateuseone_for_python_backend(NAME, backend_module=module)
    dist.Backend.backend_capability[dist.Backend.FAKE].append(NAME)
    # torch.tensor(data, device=...) then makes a host tensor and moves it through the dispatcher.
    torch._C._set_only_lift_cpu_tensors(True)
    for name in _ONE_KERNEL:
        _KERNELS.impl(name, _never_run, "PrivateUse1")
    return torch.device(NAME, 0)


def _never_run(*args: Any) -> None:
    raise AssertionError("the device works operations out before a kernel of its own is asked for")


class FakeDevice(TorchDispatchMode):
    """The device as a dispatch mode; active inside of `with device:`.

    Attributes:
        device: Of its tensors.
        memory: Bytes that it holds.
        ledger: Counts waits, traffic and work; replace it to count anew.
        numbers: Numbers of its tensors, where known.
        groups: Names of process groups.
        answers: (file, function) -> what is read there although the device does not have it.
        received: Numbers of what other ranks would send.
        workspaces: Whether kernels take the memory that they need while they run.
    """

    def __init__(self, device: torch.device, rules: Sequence[KindRule] = ()) -> None:
        """
        Args:
            device: Result of `register_device`.
            rules: See `Memory`.
        """
        super().__init__()
        self.device = device
        self.memory = Memory(rules)
        self.ledger = Ledger()
        self.numbers = KnownNumbers()
        self.groups = GroupNames()
        self.answers: dict[tuple[str, str], Answer] = {}
        self.received: Received = lambda tensor, source: None
        self.workspaces = True
        self._worked_out = FakeTensorMode(allow_non_fake_inputs=True)

    def holds(self, value: Any) -> bool:
        """Whether `value` is a tensor on the device."""
        return isinstance(value, FakeTensor) and value.device.type == self.device.type

    @contextmanager
    def counted_as(self, kind: str) -> Iterator[None]:
        """Memory that no rule names is of this kind while the block runs."""
        outer, self.memory.kind = self.memory.kind, kind
        try:
            yield
        finally:
            self.memory.kind = outer

    def empty(self, size: Sequence[int], stride: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
        """A tensor on the device, without a kernel."""
        with self._worked_out:
            return self.account(
                torch.empty_strided(tuple(size), tuple(stride), dtype=dtype, device=self.device)
            )

    def on_host(self, size: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
        """A large tensor of the host, without memory and numbers either."""
        with self._worked_out:
            return torch.empty(tuple(size), dtype=dtype, device="cpu")

    def account(self, out: Any) -> Any:
        """Counts the memory of an operation's results, and returns them."""
        for tensor in tree_flatten(out)[0]:
            if self.holds(tensor):
                self.memory.take(tensor.untyped_storage())
        return out

    def read(self, tensor: torch.Tensor) -> torch.Tensor:
        """What the host reads of a tensor on the device: an answer, its numbers, or neutral ones.

        Neutral are zeros, and True: flags say that all is well.
        """
        function, local = caller(self.answers)
        answer = None if function is None else self.answers[function](local, tensor)
        if answer is not None:
            return answer.to(tensor.dtype).view(tensor.shape)
        numbers = self.numbers.of(tensor)
        if numbers is not None:
            return numbers
        self.ledger.invent()
        fill = torch.ones if tensor.dtype == torch.bool else torch.zeros
        return fill(tensor.shape, dtype=tensor.dtype)

    def work_out(self, func: Any, args: Any, kwargs: Any) -> Any:
        """Runs an operation for its shapes, counts it, and follows known numbers.

        Raises:
            RuntimeError: As on a GPU: tensors on different devices, wrong shapes.
        """
        args, kwargs = tree_map(self._as_fake, (args, kwargs))
        with self._worked_out:
            out = func(*args, **kwargs)
            count(self.ledger, func, args, kwargs, out)
        self.numbers.follow(func, args, kwargs, out)
        return self.account(out)

    def _as_fake(self, value: Any) -> Any:
        """Tensors of the host become fake ones of the host, so that mixing devices raises."""
        if isinstance(value, torch.Tensor) and not isinstance(value, FakeTensor):
            with self._worked_out:
                fake = self._worked_out.from_tensor(value.detach(), static_shapes=True)
            self.numbers.keep(fake, value.detach())
            return fake
        return value

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func.namespace == "c10d":
            return run_collective(self, func, args)
        target = kwargs.get("device")
        wanted = target is not None and torch.device(target).type == self.device.type
        if not wanted and not any(
            isinstance(each, FakeTensor) for each in tree_flatten((args, kwargs))[0]
        ):
            if func in _SIZED and math.prod(args[0]) > LARGEST:
                return self.on_host(args[0], kwargs.get("dtype") or torch.get_default_dtype())
            return func(*args, **kwargs)
        handler = HANDLERS.get(func)
        out = NotImplemented if handler is None else handler(self, func, args, kwargs)
        return self.work_out(func, args, kwargs) if out is NotImplemented else out
