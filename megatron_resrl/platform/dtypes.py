"""Names of number formats."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def dtype_name(dtype: torch.dtype) -> str:
    """E.g. bfloat16."""
    return str(dtype).removeprefix("torch.")
