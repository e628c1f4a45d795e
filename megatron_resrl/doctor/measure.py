"""Measures one rank's device and its links to the other ranks; run as a process of its own.

`python -m megatron_resrl.doctor.measure REQUEST` prints JSON objects line by line, so that what was
measured before a hang or a crash is known, and what was being measured.
"""

from __future__ import annotations

import datetime
import json
import os
import statistics
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist

from megatron_resrl.doctor.facts.measured import Request
from megatron_resrl.doctor.pairs import Pair, rounds_of
from megatron_resrl.platform.clock import device_clock
from megatron_resrl.platform.dtypes import dtype_name
from megatron_resrl.platform.ending import end_with_parent
from megatron_resrl.platform.launch import device_of
from megatron_resrl.platform.places import own_place

_FEW, _MANY = 3, 50
"""Repetitions of a collective: at least and at most."""


@dataclass(frozen=True)
class Sizes:
    """What is sent and multiplied, and for how long."""

    all_reduce: tuple[int, ...]
    """Bytes of each all-reduce."""
    message: int
    """Bytes of a message between two ranks."""
    matrix: int
    """Rows and columns of the factors."""
    matrix_s: float
    """Seconds of multiplying."""
    collective_s: float
    """Seconds of repeating one collective."""


def sizes_for(*, cuda: bool, quick: bool) -> Sizes:
    """Sizes that tell latency from bandwidth on a device, and do not take long."""
    largest = (2**28 if not quick else 2**25) if cuda else (2**24 if not quick else 2**20)
    steps = [4, 2**10, 2**15, 2**20, 2**23, 2**25, 2**26, 2**28]
    return Sizes(
        all_reduce=tuple(size for size in steps if size <= largest),
        message=min(largest, 2**26),
        matrix=8192 if cuda else 512,
        matrix_s=0.3 if quick else 2.0,
        collective_s=0.05 if quick else 0.3,
    )


def main(request: Request) -> None:
    """Measures everything and prints it."""
    end_with_parent()
    cuda = torch.cuda.is_available()
    sizes = sizes_for(cuda=cuda, quick=request.quick)
    device = torch.device("cpu")
    if cuda:
        device = torch.device("cuda", device_of(os.environ, torch.cuda.device_count()))
        torch.cuda.set_device(device)
    _tell(device=_described(device))
    _tell(started="a matrix product")
    _tell(matrix=matrix_product(device, sizes))
    if len(request.hosts) < 2:
        return
    _tell(started="the start of the process group")
    _join(request, device)
    for size in sizes.all_reduce:
        if request.index == 0:
            _tell(started=f"an all-reduce of {size} bytes")
        found = all_reduce(size, device, sizes.collective_s)
        if request.index == 0:
            _tell(all_reduce=found)
    for pairs in rounds_of(request.hosts):
        pair = next((each for each in pairs if request.index in each), None)
        if pair is not None:
            ranks = [request.ranks[place] for place in pair]
            _tell(started=f"messages between ranks {ranks[0]} and {ranks[1]}")
            found = between(pair, request.index, device, sizes.message)
            if request.index == pair[0]:
                _tell(link={"ranks": ranks, **found})
        _tell(started="the wait for messages of other ranks")
        _largest(0.0, device)


def matrix_product(device: torch.device, sizes: Sizes) -> dict[str, Any]:
    """FLOP/s of square products, in bf16 on a GPU."""
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    generator = torch.Generator(device).manual_seed(0)
    left, right = (
        torch.randn(sizes.matrix, sizes.matrix, generator=generator, device=device, dtype=dtype)
        for _ in range(2)
    )
    out = torch.empty_like(left)

    def multiply() -> None:
        torch.mm(left, right, out=out)

    _seconds(multiply, 3)  # Loads the kernels.
    once = _seconds(multiply, 3) / 3
    # In parts: a GPU that grows hot is slower at the end than at the beginning.
    repeats = max(1, int(sizes.matrix_s / 5 / once))
    parts = [_seconds(multiply, repeats) / repeats for _ in range(5)]
    rates = [2 * sizes.matrix**3 / seconds for seconds in parts]
    return {
        "dtype": dtype_name(dtype),
        "flops": statistics.median(rates),
        "last": rates[-1],
        "best": max(rates),
    }


def all_reduce(size: int, device: torch.device, seconds: float) -> dict[str, Any]:
    """Time of an all-reduce over all ranks, that of the slowest one.

    Args:
        size: Bytes.
        device: Of the numbers.
        seconds: How long to repeat it, about.
    """
    numbers = torch.ones(size // 4, device=device)
    dist.all_reduce(numbers)
    wrong = int((numbers != dist.get_world_size()).sum())
    right = _largest(wrong, device) == 0
    numbers.zero_()  # Sums of sums would overflow.
    # The same number of repetitions on all ranks.
    once = _largest(_seconds(lambda: dist.all_reduce(numbers), 1), device)
    repeats = min(_MANY, max(_FEW, int(seconds / once)))
    taken = _largest(_seconds(lambda: dist.all_reduce(numbers), repeats) / repeats, device)
    return {"bytes": size, "seconds": taken, "ranks": dist.get_world_size(), "right": right}


def between(pair: Pair, own: int, device: torch.device, size: int) -> dict[str, Any]:
    """Latency and bandwidth between two ranks: half of there and back, the best of a few times,
    because a link that is shared for a moment is not slow.

    Args:
        pair: Their places among the ranks that take part.
        own: This rank's.
        device: Of the numbers.
        size: Bytes of the large message.
    """
    first = own == pair[0]
    other = pair[1] if first else pair[0]

    def there_and_back(numbers: torch.Tensor) -> None:
        for sends in (first, not first):
            if sends:
                dist.send(numbers, other)
            else:
                dist.recv(numbers, other)

    small, large = torch.zeros(1, device=device), torch.zeros(size // 4, device=device)
    there_and_back(small)
    latency = min(_seconds(lambda: there_and_back(small), 5) for _ in range(5)) / 5 / 2
    there_and_back(large)
    seconds = min(_seconds(lambda: there_and_back(large), 1) for _ in range(4)) / 2
    return {"latency_s": latency, "bytes": size, "bandwidth": size / seconds}


def _join(request: Request, device: torch.device) -> None:
    timeout = datetime.timedelta(seconds=request.timeout_s)
    store = dist.TCPStore(request.address, request.port, is_master=False, timeout=timeout)
    dist.init_process_group(
        "nccl" if device.type == "cuda" else "gloo",
        timeout=timeout,
        store=dist.PrefixStore(request.prefix, store),
        rank=request.index,
        world_size=len(request.hosts),
        device_id=device if device.type == "cuda" else None,
    )


def _described(device: torch.device) -> dict[str, Any]:
    if device.type == "cpu":
        return {"name": "cpu", "gpu": None, "peers": {}}
    others = [index for index in range(torch.cuda.device_count()) if index != device.index]
    return {
        "name": torch.cuda.get_device_name(device),
        "gpu": own_place().gpu,
        "peers": {
            str(other): torch.cuda.can_device_access_peer(device.index, other) for other in others
        },
    }


def _seconds(action: Callable[[], object], repeats: int) -> float:
    """Of all repetitions together, on the device."""
    clock = device_clock()
    start = clock.mark()
    for _ in range(repeats):
        action()
    return clock.seconds(start, clock.mark())


def _largest(value: float, device: torch.device) -> float:
    """Of all ranks."""
    box = torch.tensor([value], dtype=torch.float64, device=device)
    dist.all_reduce(box, op=dist.ReduceOp.MAX)
    return box.item()


def _tell(**facts: Any) -> None:
    print(json.dumps(facts), flush=True)


if __name__ == "__main__":
    main(Request(**json.loads(sys.argv[1])))
    sys.stdout.flush()
    # Connections may hang while they are closed.
    os._exit(0)
