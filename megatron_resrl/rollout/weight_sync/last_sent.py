"""What servers were sent last, and how the next weights are sent: in full, or what has changed."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from megatron_resrl.rollout.weight_sync.buckets import Bucket
from megatron_resrl.rollout.weight_sync.worker.megatron_resrl_buckets import (
    KeptBucket,
    bytes_of,
    checksum,
    parts_of,
    parts_to_json,
)


@dataclass(frozen=True)
class BucketFile:
    """What a file of a bucket holds."""

    tensors: dict[str, torch.Tensor]
    """`content` [n] uint8, or `places` and `values` of what has changed."""
    notes: dict[str, str]
    """For the header, see `KeptBuckets.take`."""
    compared_bytes: int = 0
    """Bytes of weights that were compared with those sent last."""
    changed_bytes: int = 0
    """Of these, those of units that differ."""

    @property
    def num_bytes(self) -> int:
        """Size of all tensors."""
        return sum(tensor.nbytes for tensor in self.tensors.values())


class LastSent:
    """The bytes of every bucket as servers have them: the size of all weights, on the host.

    Attributes:
        keep: Whether this process and the servers keep the bytes.
    """

    def __init__(self, other_names: Mapping[str, str], *, keep: bool) -> None:
        """
        Args:
            other_names: A second name of a tensor, by its first.
            keep: See the attribute.
        """
        self.keep = keep
        self._other_names = other_names
        self._buckets: dict[int, KeptBucket] = {}

    def give_up(self) -> None:
        """From now on nothing is kept, and all weights are sent."""
        self.keep = False
        self._buckets.clear()

    def identities(self) -> dict[str, str]:
        """Number of each bucket -> identity of its bytes."""
        return {str(number): bucket.identity for number, bucket in self._buckets.items()}

    def next_file(self, number: int, bucket: Bucket, *, in_full: bool) -> BucketFile:
        """The file by which servers get new weights. They become those that were sent last.

        Args:
            number: Of the bucket, which has the same tensors at every sync.
            bucket: The new weights.
            in_full: Whether servers may have other bytes than those sent last.
        """
        tensors = [tensor for _, tensor in bucket]
        kept = self._buckets.get(number)
        if kept is None:
            return self._first_file(number, bucket)
        before = kept.identity
        changes, changed = kept.replace(tensors, in_full=in_full)
        compared = sum(tensor.nbytes for tensor in tensors)
        if changes is None:
            return BucketFile({"content": kept.content}, _notes(number, kept), compared, changed)
        notes = {"number": str(number), "before": before, "identity": kept.identity}
        content = {"places": changes.places, "values": changes.values}
        return BucketFile(content, notes, compared, changed)

    def _first_file(self, number: int, bucket: Bucket) -> BucketFile:
        """All bytes, which are kept if they are to be."""
        parts = parts_of(bucket, self._other_names)
        content = bytes_of(parts, [tensor for _, tensor in bucket])
        if not self.keep:
            notes = {"number": str(number), "parts": json.dumps(parts_to_json(parts))}
            return BucketFile({"content": content}, notes)
        self._buckets[number] = kept = KeptBucket(parts, content, checksum(parts, content))
        return BucketFile({"content": content}, _notes(number, kept))


def _notes(number: int, kept: KeptBucket) -> dict[str, str]:
    """Of a file of all bytes that are kept."""
    return {
        "number": str(number),
        "identity": kept.identity,
        "parts": json.dumps(parts_to_json(kept.parts)),
    }
