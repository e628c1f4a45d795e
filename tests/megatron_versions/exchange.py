"""Writes and reads checkpoints on one rank, with whatever megatron-core comes first on the path.

Arguments: directory of the Hugging Face model, working folder, then any of `write=NAME` (saves
after two steps and takes a third), `read=NAME` (loads that and takes the third) and `model=NAME`
(writes the weights with megatron-core's own function, as Megatron-LM does). Prints megatron-core's
version, and by name the gradient norm of the third step and the SHA-256 of the weights after it.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from importlib import metadata
from pathlib import Path

import tiny_checkpoint as tiny
from megatron.core import dist_checkpointing

from megatron_resrl.checkpoint import (
    TrainerState,
    latest_checkpoint,
    load_checkpoint,
    save_checkpoint,
)
from megatron_resrl.platform.distributed import initialize, shutdown
from megatron_resrl.policy.policy import Policy
from megatron_resrl.rollout.worker import build_policy
from megatron_resrl.weights.hugging_face import export_weights


def third_step(policy: Policy) -> dict[str, float | str]:
    grad_norm = tiny.take_step(policy, 3).grad_norm
    digest = hashlib.sha256()
    for name, tensor in export_weights(policy.modules, policy.hf_config):
        digest.update(name.encode() + tensor.contiguous().numpy().tobytes())
    return {"grad_norm": grad_norm, "weights": digest.hexdigest()}


def save_as_megatron_lm(policy: Policy, folder: Path) -> None:
    folder.mkdir(parents=True)
    arguments = argparse.Namespace(num_attention_heads=policy.config.num_attention_heads)
    state = policy.modules[0].sharded_state_dict() | {"args": arguments}
    dist_checkpointing.save(state, str(folder))


def main(model: Path, work: Path, *tasks: str) -> None:
    recipe = tiny.recipe(model, {})
    initialize(recipe.parallel, 0)
    found: dict[str, object] = {"version": metadata.version("megatron-core")}
    for task, name in (task.split("=") for task in tasks):
        policy = build_policy(recipe)
        if task == "model":
            save_as_megatron_lm(policy, work / name)
            continue
        if task == "write":
            for step in (1, 2):
                tiny.take_step(policy, step)
            save_checkpoint(work / name, policy, TrainerState(2, {}), keep_last=1)
        else:
            load_checkpoint(latest_checkpoint(work / name), policy)
        found[name] = third_step(policy)
    shutdown()
    print(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), *sys.argv[3:])
