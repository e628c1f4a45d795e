"""A stream of tensors, cut into buckets of bounded size."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch

Bucket = list[tuple[str, torch.Tensor]]
"""Names and tensors, in the order of the stream."""


def in_buckets(weights: Iterable[tuple[str, torch.Tensor]], bucket_bytes: int) -> Iterator[Bucket]:
    """Cuts a stream into consecutive buckets, each as full as the order allows.

    Args:
        weights: Names and tensors; read no further than the first tensor that does not fit.
        bucket_bytes: Largest size of a bucket; a larger tensor is a bucket of its own.

    Yields:
        Buckets, none of them empty.
    """
    bucket: Bucket = []
    size = 0
    for name, tensor in weights:
        if bucket and size + tensor.nbytes > bucket_bytes:
            yield bucket
            bucket, size = [], 0
        bucket.append((name, tensor))
        size += tensor.nbytes
    if bucket:
        yield bucket
