"""Two data-parallel ranks: a loss that is not a number on one of them, then one whose gradients are
finite but not their squares."""

from __future__ import annotations

import sys

import torch
import torch.distributed as dist

from megatron_resrl.config.schema import ModelConfig, OptimizerConfig, PrecisionConfig, Recipe
from megatron_resrl.platform.distributed import initialize
from megatron_resrl.policy.batches import TokenBatch, TokenSequence
from megatron_resrl.rollout.worker import build_policy


def main(model: str) -> None:
    recipe = Recipe(
        model=ModelConfig(path=model),
        precision=PrecisionConfig("fp32"),
        optimizer=OptimizerConfig(lr=1e-2, lr_warmup_steps=0),
    )
    initialize(recipe.parallel, 0)
    policy = build_policy(recipe)
    batches = policy.micro_batches(TokenBatch.from_sequences([TokenSequence((3, 4), (5, 6))]), 1)
    before = [parameter.clone() for parameter in policy.modules[0].parameters()]

    def update(factor: float) -> tuple[bool, bool]:
        result = policy.update(batches, lambda log_probs, *_: (-factor * log_probs.sum(), None))
        after = policy.modules[0].parameters()
        same = all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
        return result.applied, same

    bad = update(float("nan") if dist.get_rank() == 1 else 1.0)
    huge = update(1e30)
    good = update(1.0)
    print(f"RANK {dist.get_rank()} bad {bad} huge {huge} good {good}")


if __name__ == "__main__":
    main(sys.argv[1])
