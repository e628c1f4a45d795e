"""What differs between the versions of megatron-core that the package runs on: 0.16.1 to 0.19.

0.17
    A checkpoint's strategies take `async_strategy`, the name of a background writer:
    `checkpoint.writer` has a writer of its own and ignores the name.
    A checkpoint cannot be loaded with another reader of common.pt: `weights.load` reads the
    tensors alone.
0.18
    triton is imported, which torch's CPU build does not bring: `require_triton`.
    The specification of an MLP is a partial function instead of a `ModuleSpec`: `module_of` and
    `submodules_of`.
0.19
    Values that belong to no rank are stored as the object `common_state` instead of common.pt:
    `take_common_state` when saving, `weights.torch_dist_files` when reading.
    Each start brings notices about megatron-core's own code: `silence_notices`.

What `repairs` and `checkpoint.optimizer_state` mend, and what `cpu` redirects, is the same in all
of these versions.
"""

from __future__ import annotations

import functools
import importlib.util
import logging
import warnings
from importlib import metadata
from typing import Any

from packaging.version import Version

from megatron_resrl.errors import InputError

_COMMON_STATE = "common_state"
"""Key in a sharded state dict."""

_NOTICES = {
    "megatron.core.models.gpt.gpt_model": "GPTModel IS DEPRECATED",
    "megatron.core.distributed.distributed_data_parallel": (
        "DistributedDataParallel: full_param_layout not provided"
    ),
    "megatron.core.dist_checkpointing.strategies.common": "load_common is deprecated",
}
"""What megatron-core logs of its own code, which a user cannot change: logger and beginning."""

_WARNINGS = (
    r"Mimo\w+ is experimental",
    r"torch\.distributed is disabled, unavailable or uninitialized",
    r"The argument order of load has been changed",
)
"""Python warnings of the same kind."""


def silence_notices() -> None:
    """Silences what this megatron-core says of itself. To be called once."""
    for message in _WARNINGS:
        warnings.filterwarnings("ignore", message=message, category=UserWarning)
    for name, beginning in _NOTICES.items():
        logging.getLogger(name).addFilter(functools.partial(_says_something_else, beginning))


def _says_something_else(beginning: str, record: logging.LogRecord) -> bool:
    return not record.getMessage().startswith(beginning)


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
