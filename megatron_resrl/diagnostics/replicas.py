"""One value per data-parallel replica."""

from __future__ import annotations

from typing import TypeVar

from megatron.core import parallel_state

from megatron_resrl.platform.distributed import gather_objects
from megatron_resrl.policy.schedule import is_last_stage

Value = TypeVar("Value")


def speaks_for_replica() -> bool:
    """Whether this rank is the one of its replica's last stage that reports what all of it know."""
    return (
        is_last_stage()
        and parallel_state.get_tensor_model_parallel_rank() == 0
        and parallel_state.get_context_parallel_rank() == 0
    )


def gather_from_replicas(value: Value | None) -> list[Value]:
    """The values of the last stages of all replicas, on every rank. Collective.

    Args:
        value: Of this rank, picklable; counts where `speaks_for_replica`, None elsewhere will do.
    """
    replies = gather_objects([value] if speaks_for_replica() else None)
    return [reply[0] for reply in replies if reply]
