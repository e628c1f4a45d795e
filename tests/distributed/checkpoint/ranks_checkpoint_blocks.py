"""Two replicas save the same state as blocks, and as megatron-core gathers it, and read the latter.

Arguments: folder of the models, working folder. Rank 0 prints what every rank found.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import tiny_checkpoint as tiny
import torch
import torch.distributed as dist
from layouts import begin_layout
from megatron.core import dist_checkpointing, parallel_state

from megatron_resrl.checkpoint import TrainerState, load_checkpoint, policy_state, save_checkpoint
from megatron_resrl.platform.distributed import gather_objects
from megatron_resrl.policy.policy import Policy
from megatron_resrl.rollout.worker import build_policy
from megatron_resrl.weights.torch_dist_files import read_index

TP2 = {"tensor_model_parallel_size": 2}
BUCKETS = {"ddp": {"overlap_grad_reduce": True, "bucket_size": 3000}}


def gathered_state(policy: Policy) -> dict[str, Any]:
    """What checkpoints had before there were blocks: megatron-core's own state of the optimizer."""
    metadata = {
        "dp_cp_group": parallel_state.get_data_parallel_group(with_context_parallel=True),
        "distrib_optim_sharding_type": "fully_reshardable",
        "singleton_local_shards": False,
        "chained_optim_avoid_prefix": True,
    }
    state = {
        f"model{number}": module.sharded_state_dict(metadata=metadata)
        for number, module in enumerate(policy.modules)
    }
    optimizer = policy.optimizer.sharded_state_dict(state, is_loading=False, metadata=metadata)
    return state | {"optimizer": optimizer}


def save_gathered(folder: Path, policy: Policy) -> Path:
    blocks = policy_state.sharded_state
    policy_state.sharded_state = gathered_state
    try:
        return save_checkpoint(folder, policy, TrainerState(2, {}))
    finally:
        policy_state.sharded_state = blocks


def stored(path: Path) -> dict[str, torch.Tensor]:
    tensors = dist_checkpointing.load_plain_tensors(str(path))
    return {name: value for name, value in tensors.items() if torch.is_tensor(value)}


def differing(first: Path, second: Path) -> list[str]:
    """Names of stored tensors that differ, padding rows of vocabularies aside."""
    mine, other = stored(first), stored(second)
    found = sorted(mine.keys() ^ other.keys())
    for name in mine.keys() & other.keys():
        a, b = mine[name], other[name]
        if name.endswith(("word_embeddings.weight", "output_layer.weight")):
            a, b = a[: tiny.VOCABULARY], b[: tiny.VOCABULARY]
        if a.dtype != b.dtype or not torch.equal(a, b):
            found.append(name)
    return found


def own_elements(path: Path) -> int:
    """Elements of the optimizer's state that this rank's file holds."""
    index = read_index(path)
    own = {
        key
        for key, place in index.storage_data.items()
        if place.relative_path == f"__{dist.get_rank()}_0.distcp"
    }
    return sum(
        chunk.sizes.numel()
        for name, entry in index.state_dict_metadata.items()
        if name.startswith("optimizer.state.")
        for chunk in entry.chunks
        if any(key.fqn == name and key.offset == chunk.offsets for key in own)
    )


def build(models: Path, layout: dict) -> Policy:
    recipe = tiny.recipe(models / "qwen3", layout)
    begin_layout(recipe.parallel, 0)
    return build_policy(recipe)


def main(models: Path, work: Path) -> None:
    policy = build(models, BUCKETS)
    for step in (1, 2):
        tiny.take_step(policy, step)
    blocks = save_checkpoint(work / "blocks", policy, TrainerState(2, {}))
    # Gathering goes wrong with several buckets, so that another policy does it.
    found: dict[str, Any] = {
        "elements": own_elements(blocks),
        "shard": sum(parameter.numel() for parameter in policy.optimizer.get_parameters()),
    }
    policy = build(models, {})
    load_checkpoint(blocks, policy)
    gathered = save_gathered(work / "gathered", policy)
    found["differing"] = differing(blocks, gathered)
    found["norm"] = tiny.take_step(policy, 3).grad_norm
    for name, layout in (("same layout", {}), ("TP2", TP2)):
        other = build(models, layout)
        load_checkpoint(gathered, other)
        again = save_checkpoint(work / name, other, TrainerState(2, {}))
        found[name] = {
            "differing": differing(gathered, again),
            "norm": tiny.take_step(other, 3).grad_norm,
        }
    results = gather_objects(found)
    if dist.get_rank() == 0:
        print("RESULT " + json.dumps(results))


if __name__ == "__main__":
    dist.init_process_group("gloo")
    main(*map(Path, sys.argv[1:]))
