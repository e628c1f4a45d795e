"""Which replicas of a mixture of experts must keep step."""

from __future__ import annotations

import torch.distributed as dist
from megatron.core import parallel_state


def lock_step_group(*, decoding: bool = False) -> dist.ProcessGroup | None:
    """Ranks with batches of their own that must run as many forward passes.

    They share one set of experts, and every layer exchanges tokens between all of them.

    Args:
        decoding: Context-parallel ranks decode different prompts; else they share sequences.

    Returns:
        The group, or None where all ranks that share experts have the same batches.
    """
    group = parallel_state.get_expert_tensor_and_model_parallel_group()
    if decoding:
        replica = parallel_state.get_tensor_model_parallel_group()
    else:
        replica = parallel_state.get_tensor_and_context_parallel_group()
    return group if dist.get_world_size(group) > dist.get_world_size(replica) else None
