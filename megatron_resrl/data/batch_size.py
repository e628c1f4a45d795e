"""How many sequences a step takes while the batch grows."""

from __future__ import annotations


def batch_size_after(
    consumed: int, global_batch_size: int, rampup: tuple[int, int, int] | None
) -> int:
    """Sequences of the step that comes after `consumed` sequences (Megatron-LM's rule).

    Args:
        consumed: Sequences of all steps before.
        global_batch_size: Of the steps after the ramp-up.
        rampup: First batch size, increment, and sequences over which the batch grows; None: it
            does not grow.
    """
    if rampup is None:
        return global_batch_size
    first, increment, length = rampup
    increments = (global_batch_size - first) // increment
    if consumed > length or not increments:
        return global_batch_size
    return first + int(consumed / (length / increments)) * increment


def batch_sizes(global_batch_size: int, rampup: tuple[int, int, int] | None) -> list[int]:
    """All sizes that a batch of the run can have, ascending."""
    if rampup is None:
        return [global_batch_size]
    return [*range(rampup[0], global_batch_size, rampup[1]), global_batch_size]
