"""Saves one checkpoint after the other until it is killed. Arguments: model, output folder."""

from __future__ import annotations

import sys
from pathlib import Path

import tiny_checkpoint as tiny

from megatron_resrl.checkpoint import TrainerState, save_checkpoint
from megatron_resrl.platform.distributed import initialize
from megatron_resrl.rollout.worker import build_policy

if __name__ == "__main__":
    recipe = tiny.recipe(Path(sys.argv[1]), {})
    initialize(recipe.parallel, 0)
    policy = build_policy(recipe)
    for step in range(1, 10_000):
        save_checkpoint(Path(sys.argv[2]), policy, TrainerState(step, {}), keep_last=2)
