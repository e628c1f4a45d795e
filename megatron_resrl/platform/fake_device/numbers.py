"""Numbers of device tensors that follow from numbers of the host."""

from __future__ import annotations

import contextlib
import weakref
from collections import defaultdict
from dataclasses import dataclass
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._pytree import tree_flatten, tree_map

aten = torch.ops.aten

LARGEST = 1 << 22
"""Elements: numbers of larger tensors are not kept."""

LARGEST_EMPTY = 1 << 16
"""The same of tensors that are made empty: the results of small exchanges."""

_FILLED = {
    *(aten.zeros.default, aten.ones.default, aten.full.default, aten.scalar_tensor.default),
    *(aten.arange.default, aten.arange.start, aten.arange.start_step, aten.full_like.default),
    *(aten.new_zeros.default, aten.new_ones.default, aten.new_full.default),
    *(aten.zeros_like.default, aten.ones_like.default),
}
"""Operations whose results do not depend on the numbers of any tensor."""
_EMPTY = {aten.empty.memory_format, aten.new_empty.default, aten.empty_like.default}


@dataclass
class _Room:
    """Memory without numbers yet: known when all of it has been written."""

    missing: int
    """Elements."""


class KnownNumbers:
    """Keeps, for device tensors that were made of host tensors and constants, their numbers.

    Code reads some of them back: lengths, counts, masks. Each is a tensor on the host, a *shadow*;
    views of a device tensor have views of its shadow.
    """

    def __init__(self) -> None:
        self._shadows: dict[int, tuple[Any, torch.Tensor, _Room | None]] = {}
        self._of_storage: defaultdict[int, set[int]] = defaultdict(set)

    def of(self, tensor: torch.Tensor) -> torch.Tensor | None:
        """The numbers of a device tensor; None: not known."""
        numbers, room = self._found(tensor)
        return None if room is not None and room.missing > 0 else numbers

    def write(self, tensor: torch.Tensor, numbers: torch.Tensor | None) -> None:
        """Notes what is written into all of a device tensor, None: what nobody knows. Views of it
        know as much."""
        shadow, room = self._found(tensor)
        if numbers is None:
            self.forget(tensor)
        elif shadow is None:
            self.keep(tensor, numbers.reshape(tensor.shape).to(tensor.dtype, copy=True))
        else:
            shadow.copy_(numbers.reshape(shadow.shape))
            if room is not None:
                room.missing -= tensor.numel()

    def _found(self, tensor: torch.Tensor) -> tuple[torch.Tensor | None, _Room | None]:
        found = self._shadows.get(id(tensor))
        return found[1:] if found is not None and found[0]() is tensor else (None, None)

    def keep(self, tensor: torch.Tensor, numbers: torch.Tensor, room: _Room | None = None) -> None:
        """Notes the numbers of a device tensor."""
        if tensor.numel() > LARGEST:
            return
        key, storage = id(tensor), tensor.untyped_storage()._cdata

        def drop(_: Any) -> None:
            self._shadows.pop(key, None)
            if storage in self._of_storage:
                self._of_storage[storage].discard(key)
                if not self._of_storage[storage]:
                    del self._of_storage[storage]

        self._shadows[key] = (weakref.ref(tensor, drop), numbers, room)
        self._of_storage[storage].add(key)

    def forget(self, tensor: torch.Tensor) -> None:
        """The numbers of a device tensor, and of all that share its memory, are not known."""
        for key in self._of_storage.pop(tensor.untyped_storage()._cdata, ()):
            self._shadows.pop(key, None)

    def follow(self, func: Any, args: Any, kwargs: Any, out: Any) -> None:
        """Works out the numbers of an operation's results, if those of its arguments are known."""
        results = [each for each in tree_flatten(out)[0] if isinstance(each, FakeTensor)]
        if not results:
            return
        if func in _EMPTY:
            if results[0].numel() <= LARGEST_EMPTY:
                numbers = torch.empty(results[0].shape, dtype=results[0].dtype)
                self.keep(results[0], numbers, _Room(numbers.numel()))
            return
        found, room = None, None
        if all(each.numel() <= LARGEST for each in results):
            if func.is_view:
                room = self._found(args[0])[1]
            found = self._computed(func, args, kwargs)
        if found is None:
            for result in results:
                self.forget(result)
            return
        for result, numbers in zip(results, found, strict=False):
            self.keep(result, numbers, room)

    def _computed(self, func: Any, args: Any, kwargs: Any) -> list[torch.Tensor] | None:
        given = [each for each in tree_flatten((args, kwargs))[0] if isinstance(each, FakeTensor)]
        filled = func in _FILLED
        # Views of memory without numbers are views of its shadow.
        known = (lambda each: self._found(each)[0]) if func.is_view else self.of
        unknown = not given or any(known(each) is None for each in given)
        if (not filled and unknown) or torch.Tag.nondeterministic_seeded in func.tags:
            return None

        def on_host(value: Any) -> Any:
            if isinstance(value, FakeTensor):
                shadow = known(value)
                return torch.empty(value.shape, dtype=value.dtype) if shadow is None else shadow
            return torch.device("cpu") if isinstance(value, torch.device) else value

        # What a CPU cannot compute has no numbers here: kernels for some number formats.
        with contextlib.suppress(NotImplementedError, RuntimeError):
            result = func(*tree_map(on_host, args), **tree_map(on_host, kwargs))
            return [each for each in tree_flatten(result)[0] if isinstance(each, torch.Tensor)]
        return None
