"""What differs between the versions of megatron-core that the package runs on: 0.16.1 to 0.19.

| since | difference | answered by |
|---|---|---|
| 0.17 | strategies of checkpoints take `async_strategy`, the name of a background writer | `checkpoint.writer`, which has a writer of its own and ignores the name |
| 0.17 | no `common_strategy` when a checkpoint is loaded | `weights.load`, which reads tensors without it |
| 0.18 | triton is imported, which torch's CPU build does not bring | `require_triton` |
| 0.18 | specifications of MLPs are partial functions instead of `ModuleSpec` | `module_of`, `submodules_of` |
| 0.19 | values that belong to no rank are the object `common_state` instead of common.pt | `take_common_state` when saving, `weights.torch_dist_files` when reading |

Repairs and the adaptation to a CPU (`repairs`, `cpu`) hold for all of these versions, and so does the
repair of saved moments in `checkpoint.optimizer_state`.
"""

from __future__ import annotations

import functools
import importlib.util
from importlib import metadata
from typing import Any

from packaging.version import Version

from megatron_resrl.errors import InputError

_COMMON_STATE = "common_state"
"""Key in a sharded state dict."""


def require_triton() -> None:
    """Checks that what this megatron-core imports without declaring it is installed.

    Raises:
        InputError: triton is not.
    """
    installed = metadata.version("megatron-core")
    if Version(installed) >= Version("0.18") and importlib.util.find_spec("triton") is None:
        raise InputError(
            f"megatron-core {installed} imports triton, which is not installed here (torch's CPU "
            "build does not bring it): run pip install triton, or install megatron-core<0.18"
        )


def module_of(spec: Any) -> Any:
    """The class that the specification of a layer's MLP builds."""
    if isinstance(spec, functools.partial):
        # A class, or an alternative constructor of one.
        return getattr(spec.func, "__self__", spec.func)
    return spec.module


def submodules_of(spec: Any) -> Any:
    """The parts that the specification of a layer's MLP names."""
    return spec.keywords["submodules"] if isinstance(spec, functools.partial) else spec.submodules


def take_common_state(sharded_state: dict[str, Any]) -> dict[str, Any] | None:
    """Takes the values that belong to no rank out of what megatron-core gives a strategy to save.

    They go into common.pt, so that every version reads what any has written.

    Returns:
        The values; None: megatron-core has written common.pt itself.
    """
    common = sharded_state.pop(_COMMON_STATE, None)
    return None if common is None else common.data
