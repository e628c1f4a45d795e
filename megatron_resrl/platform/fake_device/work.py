"""What an operation costs a device: operations of matrix products, bytes, kernels."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch.utils._pytree import tree_flatten
from torch.utils.flop_counter import flop_registry

from megatron_resrl.platform.dtypes import dtype_name
from megatron_resrl.platform.fake_device.ledger import Ledger

aten = torch.ops.aten

_GATHERS = {
    aten.embedding.default: 0,
    aten.index_select.default: 0,
    aten.index.Tensor: 0,
    aten.gather.default: 0,
}
"""Operations that read no more of an argument than they return -> place of that argument."""
_FILLS = {
    *(aten.copy_.default, aten.fill_.Scalar, aten.fill_.Tensor, aten.zero_.default),
    *(aten.zeros.default, aten.ones.default, aten.full.default, aten.new_zeros.default),
    *(aten.zeros_like.default, aten.ones_like.default, aten.full_like.default),
}
"""Operations that only write their result or first argument."""
_NOTHING = {
    *(aten.empty.memory_format, aten.empty_strided.default, aten.empty_like.default),
    *(aten.new_empty.default, aten.new_empty_strided.default, aten.detach.default),
    *(aten.lift_fresh.default, aten.set_.source_Storage_storage_offset, aten.alias.default),
    *(aten._unsafe_view.default, aten.set_.source_Storage, aten.set_.source_Tensor),
    *(aten.view.default, aten.resize_.default, aten.record_stream.default),
}
"""Operations without a kernel, besides views."""


def count(ledger: Ledger, func: Any, args: Any, kwargs: Any, out: Any) -> None:
    """Adds an operation on the device to a ledger."""
    if func.namespace != "aten" or func in _NOTHING or func.is_view:
        return
    ledger.kernels += 1
    formula = flop_registry.get(func._overloadpacket)
    if formula is None:
        ledger.touched += _touched(func, args, kwargs, out)
    else:  # A product reads its matrices while it computes.
        flops = formula(*args, **kwargs, out_val=out)
        # The matrices come last: what their product is added to may have a wider type.
        ledger.matrix_flops[dtype_name(_tensors(args)[-1].dtype)] += int(flops)


def count_kernel(
    ledger: Ledger,
    read: Iterable[torch.Tensor],
    written: Iterable[torch.Tensor],
    flops: float = 0.0,
    dtype: torch.dtype | None = None,
) -> None:
    """Adds a kernel that no operation of torch stands for.

    Args:
        ledger: Where to.
        read: Tensors that it reads.
        written: Tensors that it writes.
        flops: Of its matrix products.
        dtype: Their number format; default: of the first tensor read.
    """
    read = list(read)
    ledger.kernels += 1
    if not flops:
        ledger.touched += sum(t.nbytes for t in (*read, *written))
    else:
        ledger.matrix_flops[dtype_name(dtype or read[0].dtype)] += int(flops)


def _tensors(value: Any) -> list[torch.Tensor]:
    return [each for each in tree_flatten(value)[0] if isinstance(each, torch.Tensor)]


def _touched(func: Any, args: Any, kwargs: Any, out: Any) -> int:
    """Bytes that an operation reads and writes; what it reads several times counts once."""
    results = _tensors(out)
    written = sum(each.nbytes for each in results)
    if func in _FILLS:
        return written + sum(each.nbytes for each in _tensors(args[1:2]))
    if func in _GATHERS:
        rest = sum(each.nbytes for each in _tensors(args[1:]))
        return 2 * written + rest
    return written + sum(
        each.nbytes for each in {id(t): t for t in _tensors((args, kwargs))}.values()
    )
