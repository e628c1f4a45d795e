"""What of the settings arrives in the policy of four ranks.

Arguments: folder of the models. Rank 0 prints one line of JSON per layout.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.optimizer.distrib_optimizer import DistributedOptimizer

from megatron_resrl.config.schema import (
    ModelConfig,
    OptimizerConfig,
    ParallelConfig,
    PrecisionConfig,
    Recipe,
)
from megatron_resrl.platform import distributed as platform
from megatron_resrl.rollout.worker import build_policy

LAYOUTS = {
    "dense": (
        "llama",
        ParallelConfig(
            tensor_model_parallel_size=2,
            pipeline_model_parallel_size=2,
            virtual_pipeline_model_parallel_size=2,
            sequence_parallel=True,
            use_distributed_optimizer=False,
            timeout_minutes=1.5,
            ddp={"overlap_grad_reduce": True},
        ),
    ),
    "experts": (
        "qwen3_moe",
        ParallelConfig(
            tensor_model_parallel_size=2,
            sequence_parallel=True,
            expert_model_parallel_size=4,
            expert_tensor_parallel_size=1,
        ),
    ),
    "context": ("llama", ParallelConfig(context_parallel_size=2)),
}


def arrived(path: Path, parallel: ParallelConfig) -> dict[str, Any]:
    """Sizes of groups, and what the model and its optimizer were told."""
    recipe = Recipe(
        model=ModelConfig(
            path=str(path), recompute_granularity="selective", megatron={"init_method_std": 0.5}
        ),
        parallel=parallel,
        precision=PrecisionConfig(params_dtype="bf16"),
        optimizer=OptimizerConfig(megatron={"decoupled_weight_decay": False}),
    )
    platform.initialize(parallel, seed=0)
    policy = build_policy(recipe)
    optimizers = getattr(policy.optimizer, "chained_optimizers", [policy.optimizer])
    default_group = dist.distributed_c10d._get_default_group()
    return {
        "tensor": parallel_state.get_tensor_model_parallel_world_size(),
        "pipeline": parallel_state.get_pipeline_model_parallel_world_size(),
        "chunks": len(policy.modules),
        "context": parallel_state.get_context_parallel_world_size(),
        "expert": parallel_state.get_expert_model_parallel_world_size(),
        "expert_tensor": parallel_state.get_expert_tensor_parallel_world_size(),
        "sequence_parallel": policy.modules[0].config.sequence_parallel,
        "distributed_optimizer": any(isinstance(o, DistributedOptimizer) for o in optimizers),
        "timeout": default_group._get_backend(platform.device()).options._timeout.total_seconds(),
        "overlap_grad_reduce": policy.chunks[0].ddp_config.overlap_grad_reduce,
        "dtype": str(next(policy.modules[0].parameters()).dtype),
        "recompute": policy.modules[0].config.recompute_granularity,
        "init_method_std": policy.modules[0].config.init_method_std,
        "decoupled_weight_decay": optimizers[0].config.decoupled_weight_decay,
    }


def main() -> None:
    for name, (model, parallel) in LAYOUTS.items():
        found = arrived(Path(sys.argv[1]) / model, parallel)
        if dist.get_rank() == 0:
            print(json.dumps({"layout": name} | found))
    platform.shutdown()


if __name__ == "__main__":
    main()
