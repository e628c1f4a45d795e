"""Cutting a stream of tensors into buckets."""

from __future__ import annotations

from itertools import pairwise

import torch
from hypothesis import given
from hypothesis import strategies as st

from megatron_resrl.rollout.weight_sync.buckets import in_buckets

SIZES = st.lists(st.integers(0, 12), max_size=30)


def _stream(sizes: list[int]) -> list[tuple[str, torch.Tensor]]:
    return [(f"w{n}", torch.zeros(size, dtype=torch.uint8)) for n, size in enumerate(sizes)]


def _bytes(bucket: list[tuple[str, torch.Tensor]]) -> int:
    return sum(tensor.nbytes for _, tensor in bucket)


@given(SIZES, st.integers(1, 20))
def test_buckets_hold_every_tensor_once_in_order(sizes, limit):
    stream = _stream(sizes)
    found = [pair for bucket in in_buckets(iter(stream), limit) for pair in bucket]
    assert [name for name, _ in found] == [name for name, _ in stream]
    assert all(a is b for (_, a), (_, b) in zip(found, stream, strict=True))


@given(SIZES, st.integers(1, 20))
def test_buckets_are_too_large_only_for_one_tensor(sizes, limit):
    for bucket in in_buckets(_stream(sizes), limit):
        assert bucket
        alone = [pair for pair in bucket if pair[1].nbytes]
        assert _bytes(bucket) <= limit or len(alone) == 1


@given(SIZES, st.integers(1, 20))
def test_buckets_are_as_full_as_the_order_allows(sizes, limit):
    buckets = list(in_buckets(_stream(sizes), limit))
    for bucket, following in pairwise(buckets):
        assert _bytes(bucket) + following[0][1].nbytes > limit


def test_buckets_read_ahead_one_tensor_at_most():
    read = []

    def stream():
        for name, tensor in _stream([4, 4, 4, 4]):
            read.append(name)
            yield name, tensor

    next(in_buckets(stream(), 8))
    assert read == ["w0", "w1", "w2"]
