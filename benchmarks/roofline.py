"""What this machine could do at best: rates of matrix products and of memory, in fp32."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from typing import Any

import torch

_PRODUCT, _PRODUCTS = 1536, 12
_COPIED_FLOATS, _COPIES = 2**25, 8


def product_rate() -> float:
    """FLOP/s of the fastest of several large matrix products."""
    left, right = torch.randn(_PRODUCT, _PRODUCT), torch.randn(_PRODUCT, _PRODUCT)
    out = torch.empty(_PRODUCT, _PRODUCT)
    fastest = min(_seconds(lambda: torch.mm(left, right, out=out)) for _ in range(_PRODUCTS))
    return 2 * _PRODUCT**3 / fastest


def memory_rate() -> float:
    """Bytes/s read and written by the fastest of several copies of 128 MB."""
    source, target = torch.zeros(_COPIED_FLOATS), torch.zeros(_COPIED_FLOATS)
    fastest = min(_seconds(lambda: target.copy_(source)) for _ in range(_COPIES))
    return 2 * 4 * _COPIED_FLOATS / fastest


def products_seconds(products: Sequence[tuple[torch.Tensor, int]], repeats: int = 5) -> float:
    """Seconds of one product with each matrix, one after the other, as a model's pass makes them.

    Args:
        products: Matrices [out, in], and how many rows each is multiplied with.
        repeats: Passes, of which the median counts.
    """
    rows = [torch.randn(count, matrix.shape[1]) for matrix, count in products]
    outs = [torch.empty(count, matrix.shape[0]) for matrix, count in products]

    def every() -> None:
        for (matrix, _), row, out in zip(products, rows, outs, strict=True):
            torch.mm(row, matrix.T, out=out)

    every()
    return statistics.median(_seconds(every) for _ in range(repeats))


def _seconds(function: Any) -> float:
    began = time.perf_counter()
    function()
    return time.perf_counter() - began
