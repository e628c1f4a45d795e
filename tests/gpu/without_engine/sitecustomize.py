"""Hides Transformer Engine from the Python processes that find this folder on PYTHONPATH."""

from __future__ import annotations

import sys
from typing import Any

HIDDEN = ("transformer_engine", "transformer_engine_torch")


class _Hiding:
    """A finder that does not find them."""

    def __init__(self, finder: Any) -> None:
        self._finder = finder

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        if name.partition(".")[0] in HIDDEN:
            return None
        return self._finder.find_spec(name, path, target)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._finder, name)


sys.meta_path[:] = [_Hiding(finder) for finder in sys.meta_path]
