"""Host copies of what training changes: each byte once, in no more memory than that."""

from __future__ import annotations

import mmap
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

_SLAB_BYTES = 2**28
"""Host memory is taken in slabs of this size: torch rounds pinned memory up to a power of two. A
larger tensor has a slab of its own."""
_ALIGNMENT = 64
"""Of a copy in its slab, in bytes."""


@dataclass
class _Span:
    """Memory of tensors that overlap, and where its copy is."""

    start: int
    """Address of the first byte."""
    stop: int
    members: list[int] = field(default_factory=list)
    """Numbers of the tensors."""

    @property
    def aligned_size(self) -> int:
        """Bytes that the copy takes."""
        return -(-(self.stop - self.start) // _ALIGNMENT) * _ALIGNMENT


class HostMemory:
    """Host memory that is used again: the system takes longer to hand it out than it is filled."""

    def __init__(self) -> None:
        self._slabs: list[mmap.mmap] = []

    def slabs(self, sizes: Sequence[int]) -> list[torch.Tensor]:
        """Memory of these sizes in bytes; what the last call returned is overwritten."""
        if [len(slab) for slab in self._slabs] != list(sizes):
            private = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
            self._slabs = [mmap.mmap(-1, size, flags=private) for size in sizes]
        return [torch.frombuffer(slab, dtype=torch.uint8) for slab in self._slabs]

    def release(self) -> None:
        """Lets the system take the memory where it needs some, before the next call of `slabs`."""
        if hasattr(mmap, "MADV_FREE"):
            for slab in self._slabs:
                slab.madvise(mmap.MADV_FREE)


def host_copies(
    tensors: Sequence[torch.Tensor], memory: HostMemory | None = None
) -> list[torch.Tensor]:
    """Copies tensors to host memory, in the order of their devices' work.

    From a GPU the copies go to pinned memory, which torch keeps for the next call, and are there
    once the device has come to them: neither the caller nor the device waits. Tensors that share
    memory share their copy: fp32 weights are their own masters.

    Args:
        tensors: On the host or on a device.
        memory: Where copies of tensors on the host go; None: new memory.

    Returns:
        A copy of each, contiguous, in a storage of its own size.
    """
    tensors = [tensor.detach().contiguous() for tensor in tensors]
    pinned = any(tensor.is_cuda for tensor in tensors)
    copies = [torch.empty(0)] * len(tensors)
    dealt = _slabs(_spans(tensors))
    # All tensors may be empty, and there is no memory of no bytes.
    sizes = [max(1, sum(span.aligned_size for span in slab_spans)) for slab_spans in dealt]
    if pinned:
        slabs = [torch.empty(size, dtype=torch.uint8, pin_memory=True) for size in sizes]
    else:
        slabs = (memory or HostMemory()).slabs(sizes)
    for slab, slab_spans in zip(slabs, dealt, strict=True):
        content, begin = slab.numpy(), 0
        for span in slab_spans:
            length = span.stop - span.start
            slab[begin : begin + length].copy_(_memory(span, tensors), non_blocking=True)
            for number in span.members:
                tensor = tensors[number]
                copies[number] = _tensor_at(content, begin + tensor.data_ptr() - span.start, tensor)
            begin += span.aligned_size
    return copies


def in_own_storage(tensor: torch.Tensor) -> torch.Tensor:
    """The same memory as a tensor whose storage holds nothing else.

    torch's checkpoint writer copies every tensor whose storage is larger, and keeps the copies
    until its file is written.

    Args:
        tensor: On the host.
    """
    tensor = tensor.detach()
    if tensor.untyped_storage().nbytes() == tensor.nbytes or not tensor.is_contiguous():
        return tensor
    return _tensor_at(tensor.reshape(-1).view(torch.uint8).numpy(), 0, tensor)


def _spans(tensors: Sequence[torch.Tensor]) -> list[_Span]:
    """The memory of all tensors, without overlaps. Addresses of host and devices are distinct."""
    storages = [tensor.untyped_storage().data_ptr() for tensor in tensors]
    places = [tensor.data_ptr() for tensor in tensors]
    spans: list[_Span] = []
    last = None
    for number in sorted(range(len(tensors)), key=lambda n: (storages[n], places[n])):
        start, stop = places[number], places[number] + tensors[number].nbytes
        if storages[number] != last or start >= spans[-1].stop:
            spans.append(_Span(start, stop))
            last = storages[number]
        spans[-1].stop = max(spans[-1].stop, stop)
        spans[-1].members.append(number)
    return spans


def _slabs(spans: Sequence[_Span]) -> list[list[_Span]]:
    """Deals spans to slabs, each filled before the next begins; small ones come last."""
    slabs: list[list[_Span]] = []
    filled = 0
    for span in sorted(spans, key=lambda span: -span.aligned_size):
        if not slabs or filled + span.aligned_size > _SLAB_BYTES:
            slabs.append([])
            filled = 0
        slabs[-1].append(span)
        filled += span.aligned_size
    return slabs


def _memory(span: _Span, tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    """The bytes of a span, where they are."""
    first = tensors[span.members[0]]
    storage = first.untyped_storage()
    return torch.empty(0, dtype=torch.uint8, device=first.device).set_(
        storage, span.start - storage.data_ptr(), (span.stop - span.start,), (1,)
    )


def _tensor_at(content: np.ndarray, begin: int, like: torch.Tensor) -> torch.Tensor:
    """A tensor whose storage is a part of host memory.

    Args:
        content: Bytes.
        begin: Of the tensor in `content`.
        like: Of the same shape and type.
    """
    if not like.numel():
        return torch.empty(like.shape, dtype=like.dtype)
    return torch.frombuffer(content, dtype=like.dtype, count=like.numel(), offset=begin).view(
        like.shape
    )
