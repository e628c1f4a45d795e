"""Two data-parallel replicas, parameters gathered late, and one prompt: one replica has none.

Argument: directory of the model. Generates before the first update, after an update that is
skipped because a gradient is not finite, and after one that is applied; each rank prints the
tokens as one line of JSON.
"""

from __future__ import annotations

import json
import sys

import torch
import torch.distributed as dist

from megatron_resrl.config.schema import ModelConfig, ParallelConfig, PrecisionConfig, Recipe
from megatron_resrl.platform.distributed import initialize
from megatron_resrl.policy.batches import MicroBatch, TokenBatch, TokenSequence
from megatron_resrl.rollout.engine import GenerationRequest, SamplingParams
from megatron_resrl.rollout.engines.megatron import MegatronEngine
from megatron_resrl.rollout.worker import build_policy


def main(model: str) -> None:
    dist.init_process_group("gloo")
    recipe = Recipe(
        model=ModelConfig(model),
        parallel=ParallelConfig(
            timeout_minutes=1.0, ddp={"overlap_grad_reduce": True, "overlap_param_gather": True}
        ),
        precision=PrecisionConfig("fp32"),
    )
    initialize(recipe.parallel, 0)
    policy = build_policy(recipe)
    engine = MegatronEngine(policy, max_running_samples=4)
    batches = policy.micro_batches(TokenBatch.from_sequences([TokenSequence((3, 4), (5, 6))]), 1)

    def generate() -> list[int]:
        (responses,) = engine.generate(
            GenerationRequest([[3, 4, 5]], SamplingParams(4, (), n=1), seed=(0,))
        )
        return list(responses[0].token_ids)

    def update(factor: float) -> bool:
        def loss(log_probs: torch.Tensor, _: torch.Tensor, batch: MicroBatch) -> tuple:
            return -factor * log_probs.sum(), None

        return policy.update(batches, loss).applied

    found = {"first": generate()}
    found["skipped"] = not update(float("nan"))
    found["after_skipped"] = generate()
    found["applied"] = update(1.0)
    found["after_applied"] = generate()
    print(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
