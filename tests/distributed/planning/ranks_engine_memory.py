"""`ranks_memory` on Transformer Engine's layers.

Arguments: folder of Transformer Engine's Python, then those of `ranks_memory`. Real ranks run where
its compiled functions are answered in torch; of what these functions hold only results count, as
of a kernel. Its workspace for matrix products, 32 MiB of 50, is left out.
"""

from __future__ import annotations

import functools
import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch.utils._python_dispatch import _disable_current_modes, _get_current_dispatch_mode
from torch.utils._pytree import tree_leaves

from megatron_resrl.platform.fake_device.engine.install import install_engine
from megatron_resrl.platform.fake_device.engine.quantization import buffers_of

sys.path.insert(0, str(Path(__file__).parent))


def as_kernel(function: Callable) -> Callable:
    """The function, of whose memory only results count."""

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        counted = _get_current_dispatch_mode()
        with _disable_current_modes():
            out = function(*args, **kwargs)
        if counted is not None:
            counted.take(buffer for each in tree_leaves(out) for buffer in buffers_of(each))
        return out

    return call


def main(folder: str, dense: str, experts: str, kind: str, *names: str) -> None:
    if kind != "real":
        sys.path.insert(0, folder)
        install_engine()
    else:
        importlib.import_module("megatron.core")  # With it come Transformer Engine's layers.
        compiled = importlib.import_module("transformer_engine_torch")
        for file in importlib.import_module("compiled_in_torch.install").ANSWERED:
            for function in file.FUNCTIONS:
                setattr(compiled, function.__name__, as_kernel(function))
    products = importlib.import_module("transformer_engine.pytorch.cpp_extensions.gemm")
    products.get_cublas_workspace_size_bytes = lambda: 1
    importlib.import_module("ranks_memory").main(dense, experts, kind, *names)


if __name__ == "__main__":
    main(*sys.argv[1:])
