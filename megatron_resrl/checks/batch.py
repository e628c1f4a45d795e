"""The batch of a supervised step, which is shared out over copies of the model."""

from __future__ import annotations

from collections.abc import Iterator

from megatron_resrl.config.problems import Problem
from megatron_resrl.data.batch_size import batch_sizes


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


def check_rampup(
    rampup: tuple[int, int, int] | None,
    global_batch_size: int,
    micro_batch_size: int,
    copies: int | None,
) -> Iterator[Problem]:
    """Whether the batch grows to `global_batch_size`, and every size on the way can be shared."""
    if rampup is None:
        return
    name, (first, increment, _) = "batch.rampup_batch_size", rampup
    if min(rampup) < 1:
        yield Problem(name, rampup, "a number is below 1", "give three numbers of at least 1")
    elif first > global_batch_size or (global_batch_size - first) % increment:
        problem = (
            f"steps of {increment} do not lead from {first} to batch.global_batch_size "
            f"{global_batch_size}"
        )
        yield Problem(name, rampup, problem, "use an increment that divides the difference")
    elif copies is not None and micro_batch_size > 0:
        own = copies * micro_batch_size
        wrong = [size for size in batch_sizes(global_batch_size, rampup)[:-1] if size % own]
        if wrong:
            problem = (
                f"its batch of {wrong[0]} is not divisible by {copies} data-parallel copies of the "
                f"model x batch.micro_batch_size {micro_batch_size}"
            )
            yield Problem(name, rampup, problem, f"use multiples of {own}")
