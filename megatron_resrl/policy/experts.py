"""Which ranks of a mixture of experts run forward passes together."""

from __future__ import annotations

import torch.distributed as dist
from megatron.core import parallel_state


def expert_sync_group(*, decoding: bool = False) -> dist.ProcessGroup | None:
    """Ranks that share experts and therefore must run the same number of forward passes.

    Every layer exchanges tokens between all of these ranks, whose batches differ.

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
