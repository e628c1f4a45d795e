"""Two ranks save checkpoints as Megatron-LM does, by megatron-core alone.

Arguments: folder of Hugging Face models, folder to write into. Only the redirection of CUDA's names
to the CPU is the product's.
"""

from __future__ import annotations

import enum
import sys
import types
from pathlib import Path

import tiny_conversion
import tiny_megatron_lm as tiny
import torch
import torch.distributed as dist
from megatron.core import dist_checkpointing, parallel_state
from megatron.core.dist_checkpointing.mapping import ShardedObject
from megatron.core.distributed import DistributedDataParallel, DistributedDataParallelConfig
from megatron.core.models.gpt import GPTModel
from megatron.core.optimizer import OptimizerConfig, get_megatron_optimizer
from megatron.core.transformer.enums import AttnBackend
from transformers import AutoConfig

from megatron_resrl.platform.cpu import adapt_megatron_core

ITERATION = 100
LAYOUTS = {
    "llama": {"tensor_model_parallel_size": 2},
    "qwen2": {"tensor_model_parallel_size": 2},
    "qwen3": {"pipeline_model_parallel_size": 2},
    "mixtral": {"expert_model_parallel_size": 2},
    "qwen3_moe": {"expert_model_parallel_size": 2},
    "task": {"tensor_model_parallel_size": 2},
}


class Recipe(enum.Enum):
    """A class that only Megatron-LM has."""

    DELAYED = 1


def train(model: GPTModel) -> tuple[GPTModel, object]:
    """A distributed optimizer whose moments exist, after a step that changes no weight."""
    ddp = DistributedDataParallel(
        config=model.config,
        ddp_config=DistributedDataParallelConfig(use_distributed_optimizer=True),
        module=model,
    )
    settings = OptimizerConfig(
        optimizer="adam", lr=0.0, weight_decay=0.0, use_distributed_optimizer=True
    )
    optimizer = get_megatron_optimizer(settings, [ddp])
    ddp.zero_grad_buffer()
    optimizer.zero_grad()
    optimizer.step()
    return ddp.module, optimizer


def save(models: Path, save_dir: Path, name: str) -> None:
    sizes = LAYOUTS[name]
    parallel_state.initialize_model_parallel(**sizes)
    torch.manual_seed(1)
    args = tiny.arguments(AutoConfig.from_pretrained(models / name), **sizes)
    args.attention_backend = AttnBackend.auto
    args.fp8_recipe = Recipe.DELAYED
    args.exp_avg_dtype = torch.float32
    args.load = Path("/nowhere")
    model = tiny.build(args, engine_names=name == "mixtral")
    tiny.fill(model, args, tiny_conversion.tensors(models / name))
    model, optimizer = train(model)
    group = parallel_state.get_data_parallel_group(with_context_parallel=True)
    metadata = {
        "distrib_optim_sharding_type": "dp_reshardable",
        "singleton_local_shards": False,
        "chained_optim_avoid_prefix": True,
    }
    options = metadata | {"dp_cp_group": group}
    state = {
        "args": args,
        "checkpoint_version": 3.0,
        "iteration": ITERATION,
        "num_floating_point_operations_so_far": 12345,
        "model": model.sharded_state_dict(metadata=options),
    }
    state["optimizer"] = optimizer.sharded_state_dict(state, metadata=options)
    state["opt_param_scheduler"] = {"max_lr": 1e-4, "num_steps": 6400}
    rank, world = dist.get_rank(), dist.get_world_size()
    state["rng_state"] = ShardedObject("rng_state", [b"state"], (1, world), (0, rank))
    folder = tiny.checkpoint_folder(save_dir / name, ITERATION)
    if rank == 0:
        folder.mkdir(parents=True)
    dist.barrier()
    dist_checkpointing.save(state, str(folder), content_metadata=metadata)
    if rank == 0:
        (save_dir / name / "latest_checkpointed_iteration.txt").write_text(str(ITERATION))
    parallel_state.destroy_model_parallel()


def main() -> None:
    models, written = map(Path, sys.argv[1:])
    adapt_megatron_core()
    # As it is pickled: by the name of a module that is not installed where it is read.
    sys.modules["megatron.training.enums"] = module = types.ModuleType("megatron.training.enums")
    module.Recipe = Recipe
    Recipe.__module__ = "megatron.training.enums"
    for name in LAYOUTS:
        save(models, written, name)


if __name__ == "__main__":
    dist.init_process_group("gloo")
    main()
