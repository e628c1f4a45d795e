"""The batch of a supervised step, which is shared out over copies of the model."""

from __future__ import annotations

from collections.abc import Iterator

from megatron_resrl.config.problems import Problem


def check_batch(
    global_batch_size: int, micro_batch_size: int, copies: int | None
) -> Iterator[Problem]:
    """Whether each of `copies` data-parallel copies gets as many whole micro-batches."""
    if copies is None or micro_batch_size < 1:
        return
    own = copies * micro_batch_size
    if global_batch_size % own:
        times = f" x batch.micro_batch_size {micro_batch_size}" if micro_batch_size > 1 else ""
        yield Problem(
            "batch.global_batch_size",
            global_batch_size,
            f"not divisible by {copies} data-parallel copies of the model{times}",
            f"use a multiple of {own}",
        )
