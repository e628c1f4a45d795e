"""Packed sequences [tokens, ...] as rows [sequences, longest, ...] padded with zeros, and back."""

from __future__ import annotations

import torch


def convert_thd_to_bshd(
    packed: torch.Tensor, starts: torch.Tensor, count: int, longest: int
) -> torch.Tensor:
    """Every sequence a row."""
    rows = packed.new_zeros(count, longest, *packed.shape[1:])
    for row, begin, end in zip(rows, starts[:-1].tolist(), starts[1:].tolist(), strict=True):
        row[: end - begin] = packed[begin:end]
    return rows


def convert_bshd_to_thd(rows: torch.Tensor, starts: torch.Tensor, tokens: int) -> torch.Tensor:
    """The rows' sequences behind each other."""
    lengths = starts.diff().tolist()
    packed = torch.cat([row[:length] for row, length in zip(rows, lengths, strict=True)])
    assert len(packed) == tokens
    return packed


FUNCTIONS = (convert_thd_to_bshd, convert_bshd_to_thd)
