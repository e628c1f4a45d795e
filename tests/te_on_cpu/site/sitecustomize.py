"""Puts the Python processes that find this folder on PYTHONPATH on Transformer Engine's layers.

TE_ON_CPU names the folder that holds Transformer Engine's Python. Nothing is imported before the
process itself imports one of the two, so that programs without it start as fast as ever.
"""

from __future__ import annotations

import importlib
import os
import sys
from pathlib import Path
from typing import Any


class _BeforeEngine:
    """A finder that finds nothing: it notices the first import of either package."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> None:
        if name in ("megatron", "transformer_engine"):
            sys.meta_path.remove(self)
            importlib.import_module("compiled_in_torch.install").install()


if os.environ.get("TE_ON_CPU"):
    # In front of Transformer Engine's folder nothing of the same name may be found.
    sys.path[:0] = [str(Path(__file__).resolve().parents[1]), os.environ["TE_ON_CPU"]]
    os.environ["TORCHDYNAMO_DISABLE"] = "1"  # It would compile each little function in C++.
    os.environ["NVTE_PROJECT_BUILDING"] = "1"  # Transformer Engine then loads no library.
    sys.meta_path.insert(0, _BeforeEngine())
