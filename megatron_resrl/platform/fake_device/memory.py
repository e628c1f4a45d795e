"""Bytes that the device holds, by kind and source line."""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from megatron_resrl.platform.fake_device.lines import KindRule, origin

ROUNDING = 512
"""Bytes: CUDA's caching allocator gives multiples of this."""
_LINE_BYTES = 1 << 20
"""Size from which on the line that takes memory is looked up."""
_SMALL = "tensors below 1 MiB"


@dataclass
class _Block:
    """The memory of one storage."""

    reference: Any
    size: int
    kind: str
    line: str


class Memory:
    """Accounts for storages on the device; a storage counts until nothing refers to it.

    Attributes:
        kind: Of memory that no rule names.
        total: Bytes now.
        peak: Most bytes since `start_peak`.
    """

    def __init__(self, rules: Sequence[KindRule] = ()) -> None:
        """
        Args:
            rules: Say what the memory is that a piece of code takes; the first that fits the
                innermost frame counts.
        """
        self.kind = "other"
        self.total = 0
        self.peak = 0
        self._rules = rules
        self._blocks: dict[int, _Block] = {}
        self._now: Counter[tuple[str, str]] = Counter()
        self._at_peak: dict[tuple[str, str], int] | None = {}
        """Bytes by kind and line at the peak; None: the peak is now."""

    def take(self, storage: torch.UntypedStorage) -> None:
        """Counts a storage, once."""
        key = storage._cdata
        if key in self._blocks:
            return
        size = -(-storage.nbytes() // ROUNDING) * ROUNDING
        kind, line = self.kind, _SMALL
        if size >= _LINE_BYTES:
            found = origin(self._rules)
            kind, line = found.kind or self.kind, found.line
        reference = weakref.ref(storage, lambda _: self._free(key))
        self._blocks[key] = _Block(reference, size, kind, line)
        self._add(kind, line, size)

    def rename(self, tensors: Iterable[torch.Tensor], kind: str) -> None:
        """Says what the memory of tensors is, whatever the rules say."""
        self._keep_peak()
        for tensor in tensors:
            block = self._blocks.get(tensor.untyped_storage()._cdata)
            if block is not None and block.kind != kind:
                self._now[block.kind, block.line] -= block.size
                self._now[kind, block.line] += block.size
                block.kind = kind

    def start_peak(self) -> None:
        """Forgets the peak so far."""
        self.peak, self._at_peak = self.total, None

    def at_peak(self) -> dict[tuple[str, str], int]:
        """Bytes by kind and line at the peak."""
        self._keep_peak()
        assert self._at_peak is not None, "the peak has just been kept"
        return self._at_peak

    def _add(self, kind: str, line: str, size: int) -> None:
        self._now[kind, line] += size
        self.total += size
        if self.total > self.peak:
            # What it is made of is written down before it changes: one copy per peak.
            self.peak, self._at_peak = self.total, None

    def _keep_peak(self) -> None:
        if self._at_peak is None:
            self._at_peak = {key: size for key, size in self._now.items() if size}

    def _free(self, key: int) -> None:
        self._keep_peak()
        block = self._blocks.pop(key)
        self._now[block.kind, block.line] -= block.size
        self.total -= block.size
