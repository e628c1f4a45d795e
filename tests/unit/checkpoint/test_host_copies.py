"""Copies of what training changes take no more memory than that."""

from __future__ import annotations

import pytest
import torch

from megatron_resrl.checkpoint import host_copies as module
from megatron_resrl.checkpoint.host_copies import HostMemory, host_copies, in_own_storage

SLAB = 4096


@pytest.fixture
def allocated(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Bytes of each slab that is taken."""
    monkeypatch.setattr(module, "_SLAB_BYTES", SLAB)
    sizes: list[int] = []
    real = HostMemory.slabs

    def slabs(self: HostMemory, wanted: list[int]) -> list[torch.Tensor]:
        sizes.extend(wanted)
        return real(self, wanted)

    monkeypatch.setattr(HostMemory, "slabs", slabs)
    return sizes


def test_host_copies_keep_what_tensors_held(allocated: list[int]) -> None:
    buffer = torch.arange(600.0)
    tensors = [
        buffer[10:40].view(5, 6),
        torch.randn(3, 4, dtype=torch.bfloat16),
        buffer[300:].view(-1, 2).t(),  # Not contiguous.
        torch.tensor(7.5),
        torch.empty(0, 3),
        torch.randn(2 * SLAB, dtype=torch.float64),  # Larger than a slab.
    ]
    expected = [tensor.clone() for tensor in tensors]
    copies = host_copies(tensors)
    for tensor in tensors:
        tensor.fill_(-1)
    for copy, was in zip(copies, expected, strict=True):
        assert copy.dtype == was.dtype
        assert torch.equal(copy, was)
        assert copy.is_contiguous()
        assert copy.untyped_storage().nbytes() == copy.nbytes
    assert allocated[0] == 2 * SLAB * 8


def test_host_copies_hold_shared_memory_once(allocated: list[int]) -> None:
    buffer = torch.randn(512)
    master = buffer.detach()[256:384]
    whole, part, again = host_copies([buffer[:384].view(3, 128), master, buffer[128:512]])
    assert sum(allocated) == buffer.nbytes
    assert torch.equal(whole.view(-1), buffer[:384])
    assert torch.equal(part, master)
    assert torch.equal(again, buffer[128:])


def test_host_copies_fill_slabs_before_they_take_another(allocated: list[int]) -> None:
    tensors = [torch.randn(SLAB // 32) for _ in range(20)]  # An eighth of a slab each.
    host_copies(tensors)
    assert allocated == [SLAB, SLAB, SLAB // 2]


def test_host_copies_of_nothing_are_empty() -> None:
    (copy,) = host_copies([torch.empty(0, 3)])
    assert copy.shape == (0, 3)


def test_host_copies_use_released_memory_again() -> None:
    memory = HostMemory()
    first = torch.randn(10_000)
    (copy,) = host_copies([first], memory)
    place = copy.data_ptr()
    del copy
    memory.release()
    (second,) = host_copies([first + 1], memory)
    assert second.data_ptr() == place
    assert torch.equal(second, first + 1)
    grown = host_copies([first, second.clone()], memory)
    assert [torch.equal(a, b) for a, b in zip(grown, [first, first + 1], strict=True)] == [True] * 2


def test_in_own_storage_is_the_same_memory() -> None:
    buffer = torch.zeros(64, dtype=torch.bfloat16)
    view = buffer[8:32].view(4, 6)
    alone = in_own_storage(view)
    view[1, 2] = 3
    assert torch.equal(alone, view)
    assert alone.data_ptr() == view.data_ptr()
    assert alone.untyped_storage().nbytes() == view.nbytes
    assert in_own_storage(buffer).data_ptr() == buffer.data_ptr()
