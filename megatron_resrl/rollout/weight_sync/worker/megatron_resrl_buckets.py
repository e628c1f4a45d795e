"""The bytes of a bucket of weights, and what has changed in them; needs torch and numpy alone.

Trainer and server keep the bytes of every bucket, one tensor after the other. After an update the
trainer compares the new bytes with those that it has sent, and sends what differs: the places and
the values of *units* of two bytes. So the number format does not matter, and every bit arrives, of
NaN and -0, too.

Bytes have an *identity*: a checksum of bytes that were sent in full, else of the changes and the
identity before them. Equal identities are equal bytes.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy
import torch

_UNIT = 2
_WORD = 8
"""Bytes that are compared and summed at once; every tensor begins at a multiple."""
_UNITS_PER_WORD = _WORD // _UNIT
_CHUNK = 1 << 15
"""Words that are compared before the next ones are read: both sides fit into a core's cache."""
_COLUMNS = 1 << 14
"""Words that a checksum adds up apart from each other."""


@dataclass(frozen=True)
class Part:
    """A tensor in the bytes of a bucket."""

    name: str
    dtype: str
    """E.g. bfloat16."""
    shape: tuple[int, ...]
    start: int
    """First byte, a multiple of 8."""
    also: str | None = None
    """Another name of the same tensor."""

    @property
    def num_bytes(self) -> int:
        """Of the tensor."""
        return torch.Size(self.shape).numel() * getattr(torch, self.dtype).itemsize

    @property
    def room(self) -> int:
        """Bytes up to the next multiple of 8."""
        return -(-self.num_bytes // _WORD) * _WORD


@dataclass(frozen=True)
class Changes:
    """What has changed in the bytes of a bucket."""

    places: torch.Tensor
    """[n] int32, or int64 in buckets above 4 GiB: numbers of units, ascending."""
    values: torch.Tensor
    """[n] int16: their new values."""

    @property
    def num_bytes(self) -> int:
        """Of both."""
        return self.places.nbytes + self.values.nbytes

    def identity_after(self, identity: str) -> str:
        """The identity of bytes that had this one before."""
        if not len(self.places):
            return identity
        return _hash(identity.encode(), self.places.numpy(), self.values.numpy())


class KeptBucket:
    """The bytes of a bucket and the tensors that they are.

    Attributes:
        parts: The tensors.
        content: [n] uint8 on the host.
        identity: Of the bytes.
    """

    def __init__(self, parts: Iterable[Part], content: torch.Tensor, identity: str) -> None:
        """
        Args:
            parts: The tensors.
            content: [n] uint8 on the host; kept and changed.
            identity: Of the bytes; of new ones their `checksum`.
        """
        self.parts = tuple(parts)
        self.content = content
        self.identity = identity

    def tensors(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Every tensor under each of its names, without copies."""
        for part in self.parts:
            own = self.content[part.start : part.start + part.num_bytes]
            tensor = own.view(getattr(torch, part.dtype)).view(part.shape)
            yield part.name, tensor
            if part.also is not None:
                yield part.also, tensor

    def replace(
        self, new: Iterable[torch.Tensor], *, in_full: bool = False
    ) -> tuple[Changes | None, int]:
        """Takes over other tensors of the same parts.

        Args:
            new: The tensors.
            in_full: Whether the changes are of no use.

        Returns:
            What has changed, None if it is of no use or not smaller than the content; and the bytes
            of the units that differ.
        """
        found = _Comparison(self.content.nbytes, in_full=in_full)
        for part, tensor in zip(self.parts, new, strict=True):
            kept = self.content[part.start : part.start + part.room].view(torch.int64).numpy()
            now = as_words(tensor).numpy()
            for first in range(0, len(kept), _CHUNK):
                place = part.start // _UNIT + first * _UNITS_PER_WORD
                found.replace(place, kept[first : first + _CHUNK], now[first : first + _CHUNK])
        changes = found.changes()
        if changes is None:
            self.identity = checksum(self.parts, self.content)
        else:
            self.identity = changes.identity_after(self.identity)
        return changes, found.count * _UNIT

    def apply(self, changes: Changes) -> None:
        """Puts changes into the content.

        Raises:
            ValueError: The changes are not of a bucket of this size.
        """
        units = self.content.view(torch.int16).numpy()
        places, values = changes.places.numpy(), changes.values.numpy()
        if places.shape != values.shape or values.dtype != numpy.int16:
            raise ValueError(f"{len(places)} places of {len(values)} values of {values.dtype}")
        if len(places) and not 0 <= places.min() <= places.max() < len(units):
            raise ValueError(f"changes at places outside of the {len(units)} units of the bucket")
        units[places] = values
        self.identity = changes.identity_after(self.identity)


class _Comparison:
    """Replaces words of a bucket, and finds the units that differ.

    Attributes:
        count: Units that differ.
    """

    def __init__(self, content_bytes: int, *, in_full: bool) -> None:
        """
        Args:
            content_bytes: Size of the bucket.
            in_full: Whether the units are counted alone.
        """
        self.count = 0
        kind = numpy.int32 if content_bytes // _UNIT < 2**31 else numpy.int64
        self._places = [numpy.empty(0, kind)]
        self._values = [numpy.empty(0, numpy.int16)]
        self._bytes_left = 0 if in_full else content_bytes

    def replace(self, place: int, kept: numpy.ndarray, new: numpy.ndarray) -> None:
        """Replaces words [n] int64 whose first unit has the number `place`."""
        if self._bytes_left <= 0:
            differ = kept.view(numpy.int16) != new.view(numpy.int16)
            self.count += int(numpy.count_nonzero(differ))
            kept[:] = new
            return
        # Words first: a quarter of the comparisons, and few words differ.
        words = numpy.flatnonzero(kept != new)
        after = new[words]
        units = numpy.flatnonzero((kept[words] ^ after).view(numpy.int16) != 0)
        kept[words] = after
        row, lane = numpy.divmod(units, _UNITS_PER_WORD)
        places = place + words[row] * _UNITS_PER_WORD + lane
        self._places.append(places.astype(self._places[0].dtype))
        self._values.append(after.view(numpy.int16)[units])
        self.count += len(units)
        self._bytes_left -= self._places[-1].nbytes + self._values[-1].nbytes

    def changes(self) -> Changes | None:
        """All that was found; None if it is not smaller than the bucket."""
        if self._bytes_left <= 0:
            return None
        return Changes(
            torch.from_numpy(numpy.concatenate(self._places)),
            torch.from_numpy(numpy.concatenate(self._values)),
        )


class KeptBuckets:
    """The buckets that a server keeps from one sync to the next."""

    def __init__(self) -> None:
        self._buckets: dict[str, KeptBucket] = {}

    def identities(self) -> dict[str, str]:
        """Number of each bucket -> identity of its bytes."""
        return {number: bucket.identity for number, bucket in self._buckets.items()}

    def clear(self) -> None:
        """Gives up all of them."""
        self._buckets.clear()

    def take(
        self, notes: Mapping[str, str], get_tensor: Callable[[str], torch.Tensor]
    ) -> KeptBucket:
        """Takes the bytes of a file. Returns the bucket, which has its new bytes.

        Args:
            notes: Header of the file: `number` of the bucket; with all bytes `parts`, and if they
                are to be kept their `identity`; with changes the identity `before` them and the
                `identity` after them.
            get_tensor: A tensor of the file: its `content`, or `places` and `values`.

        Raises:
            ValueError: The bytes are not those that the trainer has. They are given up.
        """
        number = notes["number"]
        bucket = self._buckets.pop(number, None)
        if "parts" in notes:
            parts, content = parts_from_json(json.loads(notes["parts"])), get_tensor("content")
            if "identity" not in notes:
                return KeptBucket(parts, content, "")
            if bucket is None or bucket.content.shape != content.shape:
                bucket = KeptBucket(parts, torch.empty_like(content), "")
            # A copy: the tensor of a file is its memory.
            bucket.content.copy_(content)
            bucket.parts, bucket.identity = tuple(parts), checksum(parts, bucket.content)
        elif bucket is None or bucket.identity != notes["before"]:
            raise ValueError(f"bucket {number} does not have the bytes that have changed")
        else:
            bucket.apply(Changes(get_tensor("places"), get_tensor("values")))
        if bucket.identity != notes["identity"]:
            raise ValueError(f"bucket {number} has other bytes than the trainer has sent")
        self._buckets[number] = bucket
        return bucket


def parts_of(
    tensors: Iterable[tuple[str, torch.Tensor]], other_names: Mapping[str, str]
) -> list[Part]:
    """Where tensors lie in the bytes of their bucket.

    Args:
        tensors: Names and tensors, in order.
        other_names: A second name of a tensor, by its first.
    """
    parts: list[Part] = []
    start = 0
    for name, tensor in tensors:
        dtype = str(tensor.dtype).removeprefix("torch.")
        parts.append(Part(name, dtype, tuple(tensor.shape), start, other_names.get(name)))
        start += parts[-1].room
    return parts


def parts_to_json(parts: Iterable[Part]) -> list[Any]:
    """For `parts_from_json`."""
    return [[part.name, part.dtype, part.shape, part.start, part.also] for part in parts]


def parts_from_json(values: Iterable[Any]) -> list[Part]:
    """The parts that `parts_to_json` has written."""
    return [
        Part(name, dtype, tuple(shape), start, also) for name, dtype, shape, start, also in values
    ]


def bytes_of(parts: Iterable[Part], tensors: Iterable[torch.Tensor]) -> torch.Tensor:
    """[n] uint8 on the host: the bytes of a bucket; zeros between the tensors."""
    parts = list(parts)
    content = torch.empty(parts[-1].start + parts[-1].room, dtype=torch.uint8)
    for part, tensor in zip(parts, tensors, strict=True):
        end = part.start + part.num_bytes
        content[part.start : end].view(tensor.dtype).view(tensor.shape).copy_(tensor)
        content[end : part.start + part.room] = 0
    return content


def as_words(tensor: torch.Tensor) -> torch.Tensor:
    """[n] int64 of a tensor on the host, zeros at the end; a view where its memory allows."""
    content = tensor.detach().cpu().contiguous().view(-1).view(torch.uint8)
    rest = -content.numel() % _WORD
    if rest or content.storage_offset() % _WORD:
        content = torch.nn.functional.pad(content, (0, rest)) if rest else content.clone()
    return content.view(torch.int64)


def checksum(parts: Iterable[Part], content: torch.Tensor) -> str:
    """Of the bytes [n] uint8 of a bucket and of its parts. One changed bit always changes it.

    Sums of words, of which every `_COLUMNS`-th is in the same one: as fast as memory is read.
    """
    words = content.view(torch.int64)
    whole = len(words) // _COLUMNS * _COLUMNS
    sums = words[:whole].view(whole // _COLUMNS, _COLUMNS).sum(0)
    layout = json.dumps(parts_to_json(parts)).encode()
    return _hash(layout, sums.numpy(), words[whole:].numpy())


def _hash(*contents: Any) -> str:
    state = hashlib.blake2b(digest_size=12)
    for content in contents:
        state.update(content)
    return state.hexdigest()
