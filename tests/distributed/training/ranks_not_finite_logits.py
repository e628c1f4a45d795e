"""Two ranks of a model with one bad weight: what its rollouts and its scoring say.

Arguments: model, `PP2` or `DP2`.
"""

from __future__ import annotations

import dataclasses
import sys

import torch
import torch.distributed as dist
from one_step import score, training_batch, weigh, weighting_of

from megatron_resrl.config.schema import ModelConfig, ParallelConfig, PrecisionConfig, Recipe
from megatron_resrl.data.prompts import Prompt, PromptRecord
from megatron_resrl.errors import RunError
from megatron_resrl.platform.distributed import initialize
from megatron_resrl.rollout.collect import Sample
from megatron_resrl.rollout.engine import GenerationRequest, SamplingParams
from megatron_resrl.rollout.engines.megatron import MegatronEngine
from megatron_resrl.rollout.finite import require_finite_responses
from megatron_resrl.rollout.worker import build_policy

LAYOUTS = {"PP2": {"pipeline_model_parallel_size": 2}, "DP2": {}}
PROMPTS = [
    Prompt(PromptRecord(number, [], "", "test", {}), tokens)
    for number, tokens in enumerate([(3, 4), (5, 6, 7)])
]


def said(call: object) -> str:
    try:
        call()
    except RunError as error:
        return f"{type(error).__name__} {error.common} {error}"
    return "nothing"


def main(model: str, layout: str) -> None:
    recipe = Recipe(
        model=ModelConfig(path=model),
        parallel=ParallelConfig(**LAYOUTS[layout], timeout_minutes=1.0),
        precision=PrecisionConfig("fp32"),
    )
    initialize(recipe.parallel, 0)
    policy = build_policy(recipe, trainable=False)
    engine = MegatronEngine(policy, max_running_samples=8)
    sampling = SamplingParams(max_new_tokens=6, stop_token_ids=(1,), n=2)

    def roll_out() -> list:
        drawn = engine.generate(
            GenerationRequest([prompt.token_ids for prompt in PROMPTS], sampling, seed=(0,))
        )
        require_finite_responses(PROMPTS, drawn, policy, model, phase="rollout of training")
        return drawn

    drawn = roll_out()
    rank = dist.get_rank()
    for name, parameter in policy.modules[0].named_parameters():
        # The token 7 is in the second prompt only.
        if name == "embedding.word_embeddings.weight":
            parameter.data[7, 3] = torch.nan
    print(f"RANK {rank} rollout: {said(roll_out)}", flush=True)

    samples = [
        Sample(group, prompt, response, "", float(place), float(place), False)
        for group, (prompt, several) in enumerate(zip(PROMPTS, drawn, strict=True))
        for place, response in enumerate(several)
    ]
    if layout == "DP2":
        mine = [index for index in range(len(samples)) if index // 2 == rank]
    else:
        mine = list(range(len(samples)))
    positive = torch.tensor([bool(sample.score) for sample in samples])
    batch = training_batch(samples, positive).select(mine)
    found = said(lambda: score(policy, recipe, batch))
    print(f"RANK {rank} scoring: {found}", flush=True)
    if layout == "DP2" and rank == 1:
        settings = dataclasses.replace(
            recipe, resrl=dataclasses.replace(recipe.resrl, subspace_method="rows")
        )
        weighting = weighting_of(policy, settings)
        found = said(lambda: weigh(policy, settings, batch, weighting))
        print(f"RANK {rank} weighing: {found}", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
