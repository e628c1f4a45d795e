"""What has changed in the bytes of a bucket, bit for bit, held against numpy."""

from __future__ import annotations

from dataclasses import replace

import numpy
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from megatron_resrl.rollout.weight_sync.last_sent import LastSent
from megatron_resrl.rollout.weight_sync.worker.megatron_resrl_buckets import (
    Changes,
    KeptBucket,
    KeptBuckets,
    bytes_of,
    checksum,
    parts_of,
)

DTYPES = {torch.bfloat16: numpy.uint16, torch.float32: numpy.uint32, torch.uint8: numpy.uint8}


@st.composite
def two_versions(draw):
    """Tensors of any bits, NaN with payloads and -0.0 among them, and the same with changes."""
    old, new = [], []
    for number in range(draw(st.integers(1, 4))):
        dtype = draw(st.sampled_from(list(DTYPES)))
        size = draw(st.integers(1, 40))
        generator = numpy.random.default_rng(draw(st.integers(0, 2**32)))
        bits = generator.integers(0, numpy.iinfo(DTYPES[dtype]).max, size, DTYPES[dtype], True)
        changed = bits.copy()
        where = draw(st.lists(st.integers(0, size - 1), unique=True))
        changed[where] ^= generator.integers(1, 256, len(where), DTYPES[dtype])
        for tensors, values in ((old, bits), (new, changed)):
            tensor = torch.from_numpy(values.view(numpy.uint8)).view(dtype)
            tensors.append((f"weight_{number}", tensor))
    # Enough that stays as it is: changes of all the others are smaller than the bytes.
    rest = ("rest", torch.zeros(1024).bfloat16())
    return [*old, rest], [*new, rest]


def bits_of(tensors) -> list[bytes]:
    return [tensor.contiguous().view(torch.uint8).numpy().tobytes() for _, tensor in tensors]


def bucket_of(tensors) -> KeptBucket:
    parts = parts_of(tensors, {})
    content = bytes_of(parts, [tensor for _, tensor in tensors])
    return KeptBucket(parts, content, checksum(parts, content))


@given(two_versions())
def test_changes_reproduce_every_bit_of_the_new_weights(versions):
    old, new = versions
    server, trainer = bucket_of(old), bucket_of(old)
    assert bits_of(server.tensors()) == bits_of(old)
    changes, changed_bytes = trainer.replace([tensor for _, tensor in new])
    server.apply(changes)
    assert bits_of(server.tensors()) == bits_of(trainer.tensors()) == bits_of(new)
    assert server.identity == trainer.identity
    assert (server.identity == bucket_of(old).identity) == (len(changes.places) == 0)
    differ = numpy.frombuffer(b"".join(_padded(bits_of(old))), numpy.uint16) != numpy.frombuffer(
        b"".join(_padded(bits_of(new))), numpy.uint16
    )
    assert changes.places.tolist() == differ.nonzero()[0].tolist()
    assert changed_bytes == 2 * len(changes.places)


@given(two_versions())
def test_replace_in_full_takes_every_bit_and_counts(versions):
    old, new = versions
    _, changed_bytes = bucket_of(old).replace([tensor for _, tensor in new])
    bucket = bucket_of(old)
    assert bucket.replace([tensor for _, tensor in new], in_full=True) == (None, changed_bytes)
    assert bits_of(bucket.tensors()) == bits_of(new)
    assert bucket.identity == bucket_of(new).identity


def _padded(contents: list[bytes]) -> list[bytes]:
    return [content + bytes(-len(content) % 8) for content in contents]


@given(two_versions())
def test_checksum_differs_for_other_bytes(versions):
    old, new = versions
    assert (bucket_of(old).identity == bucket_of(new).identity) == (bits_of(old) == bits_of(new))


@pytest.mark.parametrize("place", [0, 2**17 + 5, 2**19 - 1, 2**19 + 3])
def test_checksum_of_many_rows_differs_for_one_bit(place):
    content = torch.randint(256, (2**19 + 8,), dtype=torch.uint8)
    before = checksum([], content)
    content[place] ^= 1
    assert checksum([], content) != before


def test_changes_in_many_chunks_are_found_where_numpy_finds_them():
    generator = torch.Generator().manual_seed(0)
    old = torch.randn(3 * 2**17 + 5, generator=generator).bfloat16()
    new = old.clone()
    where = torch.randperm(len(old), generator=generator)[:5000]
    new[where] = -new[where]
    changes, _ = bucket_of([("norm", torch.ones(3)), ("weight", old)]).replace([torch.ones(3), new])
    # The first tensor takes 16 bytes.
    assert changes.places.tolist() == (where.sort().values + 8).tolist()
    assert changes.values.tolist() == new.view(torch.int16)[where.sort().values].tolist()


def test_changes_of_strided_and_unaligned_tensors_are_exact():
    base = torch.randn(65).bfloat16()
    old = [("odd", base[1:]), ("transposed", torch.randn(6, 4).T)]
    bucket = bucket_of([(name, tensor.clone()) for name, tensor in old])
    assert len(bucket.replace([tensor for _, tensor in old])[0].places) == 0
    base[-1] = -0.0
    changes, _ = bucket.replace([tensor for _, tensor in old])
    assert (changes.places.tolist(), changes.values.tolist()) == ([63], [-(2**15)])


@pytest.mark.parametrize(
    ("places", "values", "said"),
    [([0, 8], [1, 2], "outside of the 8 units"), ([-1], [1], "outside"), ([0], [1, 2], "1 places")],
)
def test_apply_refuses_changes_of_another_bucket(places, values, said):
    bucket = bucket_of([("weight", torch.ones(8).bfloat16())])
    with pytest.raises(ValueError, match=said):
        bucket.apply(Changes(torch.tensor(places), torch.tensor(values, dtype=torch.int16)))
    assert bits_of(bucket.tensors()) == bits_of([("weight", torch.ones(8).bfloat16())])


def test_last_sent_chooses_changes_where_they_are_smaller():
    last_sent = LastSent({"a": "also"}, keep=True)
    weights = {"a": torch.randn(30, 4).bfloat16(), "b": torch.randn(7)}

    def next_file(*, in_full=False):
        return last_sent.next_file(0, list(weights.items()), in_full=in_full)

    server = KeptBuckets()
    first = next_file()
    assert first.tensors.keys() == {"content"}
    names = [name for name, _ in take(server, first).tensors()]
    assert names == ["a", "also", "b"]
    weights["a"] = weights["a"].clone()
    weights["a"][3, 1] += 1
    second = next_file()
    assert second.tensors["places"].tolist() == [13]
    assert (second.changed_bytes, second.compared_bytes) == (2, 30 * 4 * 2 + 7 * 4)
    assert second.notes["before"] == first.notes["identity"]
    assert torch.equal(dict(take(server, second).tensors())["also"], weights["a"])
    assert server.identities() == last_sent.identities() == {"0": second.notes["identity"]}
    # Six bytes for two: not above a third of all.
    weights["a"] = weights["a"] + 1
    third = next_file()
    assert third.tensors.keys() == {"content"}
    assert third.changed_bytes == 30 * 4 * 2
    assert torch.equal(dict(take(server, third).tensors())["a"], weights["a"])
    assert next_file(in_full=True).tensors.keys() == {"content"}


def take(server: KeptBuckets, file) -> KeptBucket:
    return server.take(file.notes, file.tensors.__getitem__)


def test_kept_buckets_refuse_changes_of_other_bytes():
    trainer, server = LastSent({}, keep=True), KeptBuckets()
    files = []
    for value in (1.0, 2.0):
        file = trainer.next_file(0, [("a", torch.full((9,), value))], in_full=True)
        # The trainer changes the bytes of a file that it has sent.
        files.append(replace(file, tensors={"content": file.tensors["content"].clone()}))
    weights = torch.full((9,), 2.0)
    weights[4] = float("nan")
    change = trainer.next_file(0, [("a", weights)], in_full=False)
    assert "before" in change.notes
    for first in ([], files[:1]):
        for file in first:
            take(server, file)
        with pytest.raises(ValueError, match="bucket 0 does not have the bytes that have changed"):
            take(server, change)
        # What a refused change has left is not used again.
        assert server.identities() == {}
    take(server, files[1])
    assert torch.isnan(dict(take(server, change).tensors())["a"]).sum() == 1


def test_kept_buckets_refuse_bytes_that_are_not_the_trainers():
    server = KeptBuckets()
    file = LastSent({}, keep=True).next_file(3, [("a", torch.ones(8))], in_full=True)
    file.tensors["content"][5] ^= 1
    with pytest.raises(ValueError, match="bucket 3 has other bytes than the trainer has sent"):
        take(server, file)
    assert server.identities() == {}


def test_kept_buckets_refuse_changes_that_are_not_the_trainers():
    trainer, server = LastSent({}, keep=True), KeptBuckets()
    weights = torch.ones(8)
    take(server, trainer.next_file(0, [("a", weights)], in_full=False))
    weights[3] = 2
    file = trainer.next_file(0, [("a", weights)], in_full=False)
    file.tensors["values"][0] ^= 1
    with pytest.raises(ValueError, match="bucket 0 has other bytes than the trainer has sent"):
        take(server, file)
    assert server.identities() == {}


def test_last_sent_in_full_has_one_identity_whatever_came_before():
    rank_0, writer = LastSent({}, keep=True), LastSent({}, keep=True)
    servers = KeptBuckets(), KeptBuckets()

    def send(value: float, *, in_full: bool) -> None:
        for trainer, server in zip((rank_0, writer), servers, strict=True):
            bucket = [("a", torch.tensor([value] + [0.0] * 9))]
            take(server, trainer.next_file(0, bucket, in_full=in_full))

    send(1.0, in_full=False)
    # As where rank 0 has no server left and another node has one.
    take(servers[1], writer.next_file(0, [("a", torch.ones(10))], in_full=False))
    assert rank_0.identities() != writer.identities()
    for in_full in (True, False):
        send(2.0 + in_full, in_full=in_full)
        assert rank_0.identities() == writer.identities()
        assert [server.identities() for server in servers] == [rank_0.identities()] * 2


def test_last_sent_without_keep_always_sends_everything():
    last_sent = LastSent({}, keep=False)
    for _ in range(2):
        file = last_sent.next_file(0, [("a", torch.ones(8))], in_full=False)
        assert file.tensors.keys() == {"content"}
        server = KeptBuckets()
        assert torch.equal(dict(take(server, file).tensors())["a"], torch.ones(8))
        assert server.identities() == {}
    assert last_sent.identities() == {}
