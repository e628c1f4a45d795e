"""One rank: goes on from a checkpoint, perhaps of a run with layers of another kind.

Arguments: folder of the models; folder of the runs; name of the run to go on with, or "nothing";
name of this run; optimizer steps before its checkpoint, and after it. Beside the checkpoint, each
run leaves its exported weights after each step.
"""

from __future__ import annotations

import sys
from pathlib import Path

import tiny_checkpoint as tiny
import torch
import torch.distributed as dist
from layouts import begin_layout

from megatron_resrl.checkpoint import (
    TrainerState,
    latest_checkpoint,
    load_checkpoint,
    save_checkpoint,
)
from megatron_resrl.rollout.worker import build_policy
from megatron_resrl.weights.hugging_face import export_weights

PLAIN = {"use_distributed_optimizer": False}
CASES = {
    "distributed": ("qwen3", {}),
    "plain": ("qwen3", PLAIN),
    "experts": ("qwen3_moe", {}),
    "experts_plain": ("qwen3_moe", PLAIN),
    "gemma": ("gemma3", {}),
}


def run(
    model: Path, layout: dict, folder: Path, source: str, name: str, before: int, after: int
) -> None:
    recipe = tiny.recipe(model, layout)
    begin_layout(recipe.parallel, 0)
    policy = build_policy(recipe)
    step = 0
    if source != "nothing":
        step = load_checkpoint(latest_checkpoint(folder / source), policy).step
    for number in range(before + after):
        if number == before:
            save_checkpoint(folder / name, policy, TrainerState(step, {}), keep_last=1)
        step += 1
        tiny.take_step(policy, step)
        weights = dict(export_weights(policy.modules, policy.hf_config))
        torch.save(
            {key: value.clone() for key, value in weights.items()}, folder / f"{name}_{step}.pt"
        )
    if not after:
        save_checkpoint(folder / name, policy, TrainerState(step, {}), keep_last=1)


def main(models: str, runs: str, source: str, name: str, before: str, after: str) -> None:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    for case, (model, layout) in CASES.items():
        folder = Path(runs) / case
        folder.mkdir(exist_ok=True)
        run(Path(models) / model, layout, folder, source, name, int(before), int(after))


if __name__ == "__main__":
    main(*sys.argv[1:])
