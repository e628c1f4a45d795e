"""Runs some of its functions on the device without numbers, as rank 1 of 4.

Arguments: names of functions. For each a line: what it printed, or what it raised.
"""

from __future__ import annotations

import sys

import torch
import torch.distributed as dist
import torch.nn.functional as F

from megatron_resrl.platform.distributed import on_device_together
from megatron_resrl.platform.fake_device.device import FakeDevice
from megatron_resrl.platform.fake_device.install import fake_device


def adds_a_host_tensor(device: FakeDevice) -> None:
    print(torch.zeros(4, 4, device="cuda") + torch.zeros(4))


def indexes_the_host_from_the_device(device: FakeDevice) -> None:
    print(torch.zeros(4)[torch.zeros(2, dtype=torch.int64, device="cuda")])


def multiplies_wrong_shapes(device: FakeDevice) -> None:
    print(torch.zeros(4, 3, device="cuda") @ torch.zeros(4, 3, device="cuda"))


def forgets_the_device_of_a_factory(device: FakeDevice) -> None:
    print(torch.cat([torch.zeros(2, device="cuda"), torch.zeros(2)]))


def reduces_a_host_tensor(device: FakeDevice) -> None:
    print(dist.all_reduce(torch.zeros(2)))


def copies_into_a_wrong_view(device: FakeDevice) -> None:
    print(torch.zeros(4, device="cuda").view(3))


def loses_a_module_on_the_host(device: FakeDevice) -> None:
    print(torch.nn.Linear(4, 4)(torch.zeros(2, 4, device="cuda")))


def counts_a_product(device: FakeDevice) -> None:
    x = torch.randn(64, 32, device="cuda", dtype=torch.bfloat16)
    w = torch.nn.Parameter(torch.randn(32, 16, device="cuda", dtype=torch.bfloat16))
    device.ledger.matrix_flops.clear()
    (x @ w).sum().backward()
    # Forward and the weight's gradient: 2 x 64 x 32 x 16 each.
    print(dict(device.ledger.matrix_flops) == {"bfloat16": 2 * 2 * 64 * 32 * 16})


def counts_waits(device: FakeDevice) -> None:
    x = torch.zeros(3, device="cuda")
    before = sum(device.ledger.waits.values())
    x.sum().item()
    x.tolist()
    x[x > 0]
    torch.cuda.synchronize()
    torch.arange(3).to("cuda")  # From pageable memory.
    # These do not wait.
    torch.arange(3).to("cuda", non_blocking=True)
    x.to("cpu", non_blocking=True)
    print(sum(device.ledger.waits.values()) - before)


def moves_several_tensors_in_one_copy_each_type(device: FakeDevice) -> None:
    given = {
        "matrix": torch.arange(6).view(2, 3),
        "flags": torch.tensor([True, False]),
        "there": torch.tensor([7], device="cuda"),
        "vector": torch.arange(4),
    }
    device.ledger.waits.clear()
    moved = on_device_together(given, torch.device("cuda"))
    waits = sum(device.ledger.waits.values())
    same = all(moved[name].tolist() == each.tolist() for name, each in given.items())
    shared = moved["matrix"].untyped_storage()._cdata == moved["vector"].untyped_storage()._cdata
    print(waits, same, list(moved) == list(given), shared)


def counts_memory_until_it_is_free(device: FakeDevice) -> None:
    before = device.memory.total
    device.memory.start_peak()
    kept = torch.zeros(1 << 20, device="cuda")
    freed = torch.zeros(1 << 20, device="cuda")
    del freed
    print(device.memory.total - before, device.memory.peak - before, kept.is_cuda)


def gathers_numbers_of_all_ranks(device: FakeDevice) -> None:
    gathered = torch.empty(4, 2, dtype=torch.int64, device="cuda")
    dist.all_gather_into_tensor(gathered, torch.tensor([3, 5], device="cuda"))
    print(gathered.sum(0).tolist())


def counts_what_a_ring_sends(device: FakeDevice) -> None:
    device.ledger.sent.clear()
    whole, part = torch.zeros(1000, device="cuda"), torch.zeros(250, device="cuda")
    dist.all_reduce(whole)
    dist.all_gather_into_tensor(whole, part)
    print(sorted((key[2], size) for key, size in device.ledger.sent.items()))


def attends_in_one_kernel(device: FakeDevice) -> None:
    q = torch.zeros(1, 4, 128, 64, device="cuda", dtype=torch.bfloat16, requires_grad=True)
    k = torch.zeros(1, 2, 128, 64, device="cuda", dtype=torch.bfloat16, requires_grad=True)
    device.memory.start_peak()
    start = device.memory.total
    out = F.scaled_dot_product_attention(q, k, k, is_causal=True, enable_gqa=True)
    # The output and one fp32 number per query and head; no matrix of scores.
    print(device.memory.peak - start == out.nbytes + 4 * 128 * 4)


def main() -> None:
    with fake_device(1, 4) as device:
        for name in sys.argv[1:]:
            try:
                globals()[name](device)
            except (RuntimeError, IndexError, TypeError) as error:
                print(type(error).__name__, str(error).splitlines()[0])


if __name__ == "__main__":
    main()
