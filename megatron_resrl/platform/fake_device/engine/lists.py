"""Kernels over lists of tensors: norms, scaling, Adam, and rows of experts that are padded."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from typing import Any

import torch

from megatron_resrl.platform.fake_device.engine.attached import device, empty, kernel

Lists = Sequence[Sequence[torch.Tensor]]


def multi_tensor_l2norm(
    chunk: int, overflow: torch.Tensor, lists: Lists, per_tensor: bool = False
) -> tuple[torch.Tensor, torch.Tensor]:
    """The norm of all tensors [1], and if asked for the norm of each."""
    total = empty(1, dtype=torch.float32)
    each = empty(len(lists[0]) if per_tensor else 0, dtype=torch.float32)
    kernel(lists[0], [total])
    return total, each


def multi_tensor_scale(chunk: int, overflow: torch.Tensor, lists: Lists, scale: Any) -> None:
    """Second list = first list * scale."""
    kernel(lists[0], lists[1])
    _forget(lists[1])


def multi_tensor_adam(chunk: int, overflow: torch.Tensor, lists: Lists, *rest: Any) -> None:
    """AdamW: reads gradients, parameters and moments (and writes all but gradients)."""
    kernel(chain(*lists), chain(*lists[1:]))
    _forget(chain(*lists[1:]))


def multi_tensor_adam_param_remainder(
    chunk: int, overflow: torch.Tensor, lists: Lists, *rest: Any
) -> None:
    """The same with masters that are kept as bf16 parameters and 16 more bits."""
    multi_tensor_adam(chunk, overflow, lists)


def fused_multi_row_padding(
    rows: torch.Tensor, out: torch.Tensor, splits: Sequence[int], padded: Sequence[int]
) -> None:
    """Each expert's rows, and zeros up to a multiple of what FP8 products take."""
    kernel([rows], [out])


def fused_multi_row_unpadding(
    rows: torch.Tensor, out: torch.Tensor, padded: Sequence[int], splits: Sequence[int]
) -> None:
    """Each expert's rows without the zeros."""
    kernel([out], [out])


def _forget(written: Any) -> None:
    for tensor in written:
        device().numbers.forget(tensor)


FUNCTIONS = (
    multi_tensor_l2norm,
    multi_tensor_scale,
    multi_tensor_adam,
    multi_tensor_adam_param_remainder,
    fused_multi_row_padding,
    fused_multi_row_unpadding,
)
