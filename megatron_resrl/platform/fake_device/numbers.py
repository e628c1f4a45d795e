"""Numbers of device tensors that follow from numbers of the host."""

from __future__ import annotations

import contextlib
import weakref
from collections import defaultdict
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._pytree import tree_flatten, tree_map

aten = torch.ops.aten

LARGEST = 1 << 22
"""Elements: numbers of larger tensors are not kept."""

_FILLED = {
    *(aten.zeros.default, aten.ones.default, aten.full.default, aten.empty.memory_format),
    *(aten.arange.default, aten.arange.start, aten.arange.start_step, aten.scalar_tensor.default),
    *(aten.new_zeros.default, aten.new_ones.default, aten.new_full.default),
    *(aten.new_empty.default, aten.zeros_like.default, aten.ones_like.default),
    *(aten.full_like.default, aten.empty_like.default),
}
"""Operations whose results do not depend on the numbers of any tensor; empty tensors are among
them, because what is written into them later is then known."""


class KnownNumbers:
    """Keeps, for device tensors that were made of host tensors and constants, their numbers.

    Code reads some of them back: lengths, counts, masks. Each is a tensor on the host, a *shadow*;
    views of a device tensor have views of its shadow.
    """

    def __init__(self) -> None:
        self._shadows: dict[int, tuple[Any, torch.Tensor]] = {}
        self._of_storage: defaultdict[int, set[int]] = defaultdict(set)

    def of(self, tensor: torch.Tensor) -> torch.Tensor | None:
        """The numbers of a device tensor; None: not known."""
        found = self._shadows.get(id(tensor))
        return found[1] if found is not None and found[0]() is tensor else None

    def keep(self, tensor: torch.Tensor, numbers: torch.Tensor) -> None:
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

        self._shadows[key] = (weakref.ref(tensor, drop), numbers)
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
        found = None
        if all(each.numel() <= LARGEST for each in results):
            found = self._computed(func, args, kwargs)
        if found is None:
            for result in results:
                self.forget(result)
            return
        for result, numbers in zip(results, found, strict=False):
            self.keep(result, numbers)

    def _computed(self, func: Any, args: Any, kwargs: Any) -> list[torch.Tensor] | None:
        given = [each for each in tree_flatten((args, kwargs))[0] if isinstance(each, FakeTensor)]
        filled = func in _FILLED
        if not filled and (not given or any(self.of(each) is None for each in given)):
            return None

        def on_host(value: Any) -> Any:
            if isinstance(value, FakeTensor):
                shadow = self.of(value)
                return torch.empty(value.shape, dtype=value.dtype) if shadow is None else shadow
            return torch.device("cpu") if isinstance(value, torch.device) else value

        # What a CPU cannot compute has no numbers here: kernels for some number formats.
        with contextlib.suppress(NotImplementedError, RuntimeError):
            result = func(*tree_map(on_host, args), **tree_map(on_host, kwargs))
            return [each for each in tree_flatten(result)[0] if isinstance(each, torch.Tensor)]
        return None
