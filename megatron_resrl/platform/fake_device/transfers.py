"""Operations that move numbers between host and device, or that need numbers to have a shape."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._pytree import tree_map

from megatron_resrl.platform.fake_device.numbers import LARGEST
from megatron_resrl.platform.fake_device.work import count_kernel

if TYPE_CHECKING:
    from megatron_resrl.platform.fake_device.device import FakeDevice

aten = torch.ops.aten


def _to_copy(device: FakeDevice, func: Any, args: Any, kwargs: Any) -> Any:
    """`Tensor.to`: up, down, or to another number format where it is."""
    tensor = args[0]
    target = torch.device(kwargs["device"]) if kwargs.get("device") is not None else tensor.device
    dtype = kwargs.get("dtype") or tensor.dtype
    up = target.type == device.device.type
    if up and not device.holds(tensor):
        # The copy of pageable memory returns when all that was queued before it is done.
        if not kwargs.get("non_blocking"):
            device.ledger.wait()
        device.ledger.host_copies += tensor.nbytes
        out = device.empty(tensor.size(), tensor.stride(), dtype)
        if not isinstance(tensor, FakeTensor):
            device.numbers.keep(out, tensor.detach().to(dtype, copy=True))
        return out
    if target.type == "cpu" and device.holds(tensor):
        # Without blocking, CUDA copies to memory that is pinned for it.
        if not kwargs.get("non_blocking"):
            device.ledger.wait()
        device.ledger.host_copies += tensor.nbytes
        if tensor.numel() > LARGEST:
            return device.on_host(tensor.shape, dtype)
        return device.read(tensor).to(dtype, copy=True)
    return NotImplemented


def _copy_(device: FakeDevice, func: Any, args: Any, kwargs: Any) -> Any:
    target, source = args[:2]
    blocking = not (args[2] if len(args) > 2 else kwargs.get("non_blocking"))
    up, down = device.holds(target), device.holds(source)
    if up != down:
        # A copy to pageable memory always waits.
        if blocking or down:
            device.ledger.wait()
        device.ledger.host_copies += source.nbytes
    if up and not isinstance(source, FakeTensor):
        device.numbers.write(target, source.expand(target.shape))
        return target
    if not isinstance(target, FakeTensor):
        return target.copy_(device.read(source))
    if up != down:
        device.numbers.forget(target)
        return target
    # Within the device: memory that was empty may be known afterwards.
    device.work_out(func, args, kwargs)
    known = device.numbers.of(source)
    device.numbers.write(target, None if known is None else known.expand(target.shape))
    return target


def _empty_like(device: FakeDevice, func: Any, args: Any, kwargs: Any) -> Any:
    """Memory of the host for a tensor of the device."""
    target = kwargs.get("device")
    if target is None or torch.device(target).type != "cpu" or not device.holds(args[0]):
        return NotImplemented
    dtype = kwargs.get("dtype") or args[0].dtype
    if args[0].numel() > LARGEST:
        return device.on_host(args[0].shape, dtype)
    return torch.empty(args[0].shape, dtype=dtype)


def _scalar(device: FakeDevice, func: Any, args: Any, kwargs: Any) -> Any:
    """`Tensor.item` and whatever makes a Python number of a tensor."""
    tensor = args[0]
    if not device.holds(tensor):
        return device.read(tensor).item()
    device.ledger.wait()
    device.ledger.host_copies += tensor.nbytes
    return device.read(tensor).item()


def _equal(device: FakeDevice, func: Any, args: Any, kwargs: Any) -> Any:
    device.ledger.wait()
    first, second = (device.numbers.of(t) if isinstance(t, FakeTensor) else t for t in args)
    return True if first is None or second is None else torch.equal(first, second)


def _by_numbers(device: FakeDevice, func: Any, args: Any, kwargs: Any) -> Any:
    """Operations whose result has as many rows as the numbers say; the host waits for them.

    Raises:
        RuntimeError: The numbers are not known.
    """
    device.ledger.wait()

    def on_host(value: Any) -> Any:
        if not isinstance(value, FakeTensor):
            return value
        numbers = device.numbers.of(value)
        if numbers is None:
            raise RuntimeError(f"{func} needs numbers that the device does not have")
        return numbers

    result = func(*tree_map(on_host, args), **tree_map(on_host, kwargs))
    return tree_map(lambda each: _on_device(device, each), result)


def _on_device(device: FakeDevice, numbers: torch.Tensor) -> torch.Tensor:
    out = device.empty(numbers.size(), numbers.stride(), numbers.dtype)
    device.numbers.keep(out, numbers)
    count_kernel(device.ledger, [], [out])
    return out


def _nonzero(device: FakeDevice, func: Any, args: Any, kwargs: Any) -> Any:
    """Of unknown truth values: as many as there could be."""
    if device.numbers.of(args[0]) is not None:
        return _by_numbers(device, func, args, kwargs)
    device.ledger.wait()
    size = (args[0].numel(), args[0].dim())
    return device.empty(size, (size[1], 1), torch.int64)


def _masked_select(device: FakeDevice, func: Any, args: Any, kwargs: Any) -> Any:
    """Known is how many there are, if the mask is known; the values if they are, too."""
    values, mask = args
    numbers = device.numbers.of(mask) if isinstance(mask, FakeTensor) else mask
    if numbers is None:
        raise RuntimeError("masked_select needs a mask that the device does not have")
    if not isinstance(values, FakeTensor) or device.numbers.of(values) is not None:
        return _by_numbers(device, func, args, kwargs)
    device.ledger.wait()
    return device.empty((int(numbers.sum()),), (1,), values.dtype)


def _index(device: FakeDevice, func: Any, args: Any, kwargs: Any) -> Any:
    """Truth values as an index become places first, which the host waits for; indices that lie on
    the host are copied.

    Raises:
        RuntimeError: As on a GPU: a tensor of the host is indexed by one on the device.
    """
    tensor, indices = args[0], args[1]
    given = [index for index in indices if index is not None]
    if not device.holds(tensor) and any(device.holds(index) for index in given):
        raise RuntimeError("a tensor of the host is indexed by one on the device")
    for index in given:
        if not isinstance(index, FakeTensor) and device.holds(tensor):
            device.ledger.wait()
            device.ledger.host_copies += index.nbytes
    if not any(index.dtype == torch.bool for index in given):
        return NotImplemented
    writes = func is not aten.index.Tensor
    if writes and args[2].numel() == 1 and all(index.dtype == torch.bool for index in given):
        # CUDA fills with one number under a mask without reading the mask.
        count_kernel(device.ledger, given, [tensor])
        device.numbers.forget(tensor)
        in_place = func is aten.index_put_.default
        return tensor if in_place else device.empty(tensor.size(), tensor.stride(), tensor.dtype)
    places: list[Any] = []
    for index in indices:
        if index is not None and index.dtype == torch.bool:
            if isinstance(index, FakeTensor):
                places += _nonzero(
                    device, func=aten.nonzero.default, args=(index,), kwargs={}
                ).unbind(1)
            else:
                places += index.nonzero(as_tuple=True)
        else:
            places.append(index)
    return device.work_out(func, (tensor, places, *args[2:]), kwargs)


def _topk(device: FakeDevice, func: Any, args: Any, kwargs: Any) -> Any:
    """Of unknown numbers all columns are chosen equally often: experts get the same share."""
    values, places = device.work_out(func, args, kwargs)
    if device.numbers.of(places) is None and places.dim() == 2:
        rows, count = places.shape
        columns = args[0].shape[1]
        turn = torch.arange(rows * count).view(rows, count)
        device.numbers.keep(places, turn % columns)
    return values, places


def _waiting(device: FakeDevice, func: Any, args: Any, kwargs: Any) -> Any:
    """Solvers whose status the host reads."""
    device.ledger.wait()
    return NotImplemented


HANDLERS: dict[Any, Callable[..., Any]] = {
    aten._to_copy.default: _to_copy,
    aten.copy_.default: _copy_,
    aten.empty_like.default: _empty_like,
    aten._local_scalar_dense.default: _scalar,
    aten.equal.default: _equal,
    aten.nonzero.default: _nonzero,
    aten.masked_select.default: _masked_select,
    aten.bincount.default: _by_numbers,
    aten.repeat_interleave.Tensor: _by_numbers,
    aten._unique2.default: _by_numbers,
    aten.unique_dim.default: _by_numbers,
    aten.index.Tensor: _index,
    aten.index_put_.default: _index,
    aten.index_put.default: _index,
    aten.topk.default: _topk,
    aten._linalg_eigh.default: _waiting,
    aten._linalg_svd.default: _waiting,
}
"""Operation -> (device, operation, arguments, named arguments) -> its result, or NotImplemented."""
