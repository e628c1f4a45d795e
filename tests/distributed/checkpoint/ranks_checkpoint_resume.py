"""Every layout of this world size: does a resumed run take the very step the first one took?

The first one takes it between fixing the contents of its checkpoint and writing them.

Argument: folder of the models. Rank 0 prints, per case, what differs on any rank.
"""

from __future__ import annotations

import json
import random
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import tiny_checkpoint as tiny
import torch
import torch.distributed as dist
from layouts import begin_layout

from megatron_resrl.checkpoint import (
    Retention,
    TrainerState,
    latest_checkpoint,
    load_checkpoint,
)
from megatron_resrl.checkpoint.checkpoint import begin_save
from megatron_resrl.checkpoint.host_copies import HostMemory
from megatron_resrl.platform.distributed import broadcast_object, gather_objects
from megatron_resrl.policy.policy import Policy
from megatron_resrl.rollout.worker import build_policy

PLAIN = {"use_distributed_optimizer": False}
TP2 = {"tensor_model_parallel_size": 2}
PP2 = {"pipeline_model_parallel_size": 2}
BUCKETS = {"ddp": {"overlap_grad_reduce": True, "bucket_size": 3000}}
CASES: dict[int, dict[str, tuple[str, str, dict]]] = {
    1: {
        "single": ("qwen3", "fp32", {}),
        "single, bf16": ("qwen3", "bf16", {}),
        "single, plain optimizer": ("qwen3", "fp32", PLAIN),
        "single, bf16, plain optimizer": ("qwen3", "bf16", PLAIN),
    },
    2: {
        "TP2": ("qwen3", "fp32", TP2),
        "TP2, sequence parallel": ("qwen3", "fp32", TP2 | {"sequence_parallel": True}),
        "PP2, tied": ("tied_llama", "fp32", PP2),
        "PP2 x VPP2": ("qwen3", "fp32", PP2 | {"virtual_pipeline_model_parallel_size": 2}),
        "DP2": ("qwen3", "fp32", {}),
        "DP2, bf16": ("tied_llama", "bf16", {}),
        "DP2, several buckets": ("tied_llama", "fp32", BUCKETS),
        "DP2, plain optimizer": ("qwen3", "fp32", PLAIN),
    },
}


def everything(policy: Policy) -> dict[str, Any]:
    """This rank's weights, optimizer state, learning rates, and the next random draws."""
    optimizers = policy.optimizer.chained_optimizers
    moments = [
        {name: torch.as_tensor(value).clone() for name, value in state.items()}
        for optimizer in optimizers
        for state in optimizer.optimizer.state.values()
    ]
    return {
        "weights": [p.detach().clone() for m in policy.modules for p in m.parameters()],
        "main weights": [p.clone() for o in optimizers for p in o.get_parameters()],
        "moments": [state[name] for state in moments for name in sorted(state)],
        "learning rates": torch.tensor([g["lr"] for g in policy.optimizer.param_groups]),
        "scheduler": torch.tensor(policy.scheduler.num_steps),
        "random": torch.tensor([random.random(), np.random.rand(), torch.rand(()).item()]),
    }


def differing(first: dict[str, Any], second: dict[str, Any]) -> list[str]:
    """Names of what is not bitwise equal."""

    def equal(a: Any, b: Any) -> bool:
        if isinstance(a, list):
            return len(a) == len(b) > 0 and all(map(equal, a, b))
        return a.dtype == b.dtype and torch.equal(a, b)

    return [name for name in first if not equal(first[name], second[name])]


def resume(models: Path, output_dir: Path, model: str, dtype: str, layout: dict) -> dict[str, Any]:
    recipe = tiny.recipe(models / model, layout, dropout=0.2, dtype=dtype)
    begin_layout(recipe.parallel, 0)
    policy = build_policy(recipe)
    for step in (1, 2):
        tiny.take_step(policy, step)
    state = TrainerState(step=2, sampler={"epoch": 1, "position": 6}, extra={"note": [1.5, None]})
    pending = begin_save(output_dir, policy, state, retention=Retention(1), copies=HostMemory())
    straight = tiny.take_step(policy, 3)
    expected = everything(policy)
    pending.finish()

    begin_layout(recipe.parallel, 999)
    fresh = build_policy(recipe)
    untouched = everything(fresh)
    path = broadcast_object(latest_checkpoint(output_dir))
    loaded = load_checkpoint(path, fresh)
    resumed = tiny.take_step(fresh, 3)
    return {
        "differs": differing(expected, everything(fresh)),
        "differs without the load": differing(expected, untouched),
        "grad norms": [straight.grad_norm, resumed.grad_norm],
        "state": loaded == state,
        "learning rates": [straight.learning_rate, resumed.learning_rate],
    }


def main(models: str) -> None:
    found = {}
    for name, case in CASES[int(dist.get_world_size())].items():
        with tempfile.TemporaryDirectory() as directory:
            output_dir = Path(broadcast_object(directory))
            found[name] = gather_objects(resume(Path(models), output_dir, *case))
            dist.barrier()
    if dist.get_rank() == 0:
        print("RESULT " + json.dumps(found))


if __name__ == "__main__":
    dist.init_process_group("gloo")
    main(*sys.argv[1:])
