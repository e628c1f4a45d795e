"""One process in one layout after the other.

megatron-core's wrapper around what is trained is never freed, because hooks in C++ refer to it, and
it to process groups. gloo has threads for each group that wake up a hundred times a second: with
the groups of many layouts, or many tests, they would keep a core busy.
"""

from __future__ import annotations

import gc
import sys
from typing import Any

import torch.distributed as dist

from megatron_resrl.config.schema import ParallelConfig

LAYOUTS: dict[int, dict[str, dict[str, Any]]] = {
    1: {"one": {}},
    2: {
        "TP2+SP": {"tensor_model_parallel_size": 2, "sequence_parallel": True},
        "PP2": {"pipeline_model_parallel_size": 2},
        "CP2": {"context_parallel_size": 2},
        "DP2": {},
    },
}
"""Number of ranks -> name -> settings of layouts with one kind of parallelism each."""


def free_wrappers() -> None:
    """Empties all wrappers of this process, whose policies are of no use afterwards."""
    module = sys.modules.get("megatron.core.distributed")
    if module is not None:
        for each in gc.get_objects():
            if type(each) is module.DistributedDataParallel:
                vars(each).clear()
        gc.collect()


def end_layout() -> None:
    """Frees the policies of this process, and their process groups. Collective."""
    from megatron.core import parallel_state

    if not parallel_state.model_parallel_is_initialized():
        return
    free_wrappers()
    found = list(vars(parallel_state).values())
    found += [each for value in found if isinstance(value, list) for each in value]
    for group in {each for each in found if isinstance(each, dist.ProcessGroup)}:
        if group is not dist.group.WORLD:
            dist.destroy_process_group(group)
    parallel_state.destroy_model_parallel()


def begin_layout(parallel: ParallelConfig, seed: int) -> None:
    """`platform.distributed.initialize`, after the layout before has been freed. Collective."""
    from megatron_resrl.platform.distributed import initialize

    end_layout()
    initialize(parallel, seed)
