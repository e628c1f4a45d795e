"""Tensors packed into runs of bytes exactly as vLLM's workers unpack them.

Source: vLLM 0.32 and 0.33, `distributed/weight_transfer/packed_tensor.py`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch

from megatron_resrl.platform.dtypes import dtype_name
from megatron_resrl.rollout.weight_sync.buckets import Bucket


def broadcast_buckets(
    weights: Iterable[tuple[str, torch.Tensor]], bucket_bytes: int
) -> Iterator[Bucket]:
    """Cuts a stream as vLLM's receivers of broadcasts do, from the shapes that were announced.

    Args:
        weights: Names and tensors.
        bucket_bytes: A bucket ends with the tensor that brings it *above* this size.

    Yields:
        Buckets, none of them empty.
    """
    bucket: Bucket = []
    size = 0
    for name, tensor in weights:
        bucket.append((name, tensor))
        size += tensor.nbytes
        if size > bucket_bytes:
            yield bucket
            bucket, size = [], 0
    if bucket:
        yield bucket


def packed(bucket: Bucket) -> torch.Tensor:
    """[n] uint8, contiguous: a copy of all tensors, one after the other."""
    return torch.cat([as_bytes(tensor) for _, tensor in bucket])


def as_bytes(tensor: torch.Tensor) -> torch.Tensor:
    """[n] uint8 of a tensor in row-major order; a view if the tensor is contiguous."""
    return tensor.contiguous().view(-1).view(torch.uint8)


def description(bucket: Bucket) -> dict[str, list[Any]]:
    """Describes packed bytes to their receiver; sizes in bytes."""
    return {
        "names": [name for name, _ in bucket],
        "dtype_names": [dtype_name(tensor.dtype) for _, tensor in bucket],
        "shapes": [list(tensor.shape) for _, tensor in bucket],
        "tensor_sizes": [tensor.nbytes for _, tensor in bucket],
    }
