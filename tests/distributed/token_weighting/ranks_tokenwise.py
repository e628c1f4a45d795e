"""Weights of the same responses in every layout of this world size: token-wise, of whole groups.

Arguments: folder of the models, output file. Rank 0 writes layout -> these weights [B, T], and how
far the weights of the policy are apart after a step in one pass and one in two.
"""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from pathlib import Path

import torch
import torch.distributed as dist
from layouts import begin_layout
from one_step import take_step, training_batch, weigh
from tiny_rollouts import rollouts
from torch import Tensor

from megatron_resrl.config.schema import (
    AlgorithmConfig,
    ModelConfig,
    ParallelConfig,
    PrecisionConfig,
    Recipe,
)
from megatron_resrl.platform import distributed as platform
from megatron_resrl.policy.policy import Policy
from megatron_resrl.rollout.worker import build_policy
from megatron_resrl.token_weighting.context import WeightingContext
from megatron_resrl.token_weighting.nthr import NTHRWeighting
from megatron_resrl.token_weighting.options import NTHROptions, ShearOptions, THROptions
from megatron_resrl.token_weighting.shear import ShearWeighting
from megatron_resrl.token_weighting.thr import THRWeighting
from megatron_resrl.token_weighting.tokenwise import TokenwiseWeighting
from megatron_resrl.weights.hugging_face import export_weights

TP2 = {"tensor_model_parallel_size": 2}
LAYOUTS = {
    1: {"one": {}},
    2: {
        "TP2": TP2,
        "TP2+SP": TP2 | {"sequence_parallel": True},
        "PP2": {"pipeline_model_parallel_size": 2},
        "CP2": {"context_parallel_size": 2},
    },
}


class FromNorm(TokenwiseWeighting):
    """x / (1 + x) of the state's norm x."""

    def weights(self, hidden: Tensor) -> Tensor:
        norm = hidden.double().norm(dim=1)
        return norm / (1 + norm)


def shear_of(policy: Policy, recipe: Recipe) -> ShearWeighting:
    """With spans so short that every response has several."""
    options = ShearOptions(span=4, stride=2)
    context = WeightingContext(policy, recipe.resrl, recipe.seed, 64, options=options)
    return ShearWeighting(context)


def nthr_of(policy: Policy, recipe: Recipe) -> NTHRWeighting:
    """With a weight for selected tokens that no other has."""
    context = WeightingContext(
        policy, recipe.resrl, recipe.seed, 64, options=NTHROptions(beta=0.7, eta=0.25)
    )
    return NTHRWeighting(context)


def thr_of(policy: Policy, recipe: Recipe) -> THRWeighting:
    """With a threshold that some tokens are below."""
    context = WeightingContext(
        policy, recipe.resrl, recipe.seed, 64, options=THROptions(threshold=3.0)
    )
    return THRWeighting(context)


def after_a_step(recipe: Recipe, single_pass: str) -> tuple[Tensor, float]:
    """All weights of the policy as one vector, and the passes of the step."""
    algorithm = replace(recipe.algorithm, single_pass=single_pass)
    resrl = replace(recipe.resrl, weights=f"{__file__}:FromNorm")
    recipe = replace(recipe, algorithm=algorithm, resrl=resrl)
    policy = build_policy(recipe)
    done = take_step(policy, recipe, rollouts()[0])
    weights = dict(export_weights(policy.modules, policy.hf_config)).values()
    return torch.cat([each.flatten() for each in weights]), done.metrics["step/passes"]


def main() -> None:
    models, found = Path(sys.argv[1]), {}
    for name, parallel in LAYOUTS[int(os.environ["WORLD_SIZE"])].items():
        recipe = Recipe(
            model=ModelConfig(path=str(models / "qwen3")),
            parallel=ParallelConfig(**parallel, timeout_minutes=1.0),
            precision=PrecisionConfig("fp32"),
            algorithm=AlgorithmConfig(micro_batch_size=3),
        )
        begin_layout(recipe.parallel, seed=0)
        policy = build_policy(recipe, trainable=False)
        weighting = FromNorm(WeightingContext(policy, recipe.resrl, recipe.seed, 64))
        weights = weigh(policy, recipe, training_batch(*rollouts()), weighting).weights
        shear = weigh(policy, recipe, training_batch(*rollouts()), shear_of(policy, recipe)).weights
        # All ranks have the same weights, whichever stage saw the states.
        nthr = weigh(policy, recipe, training_batch(*rollouts()), nthr_of(policy, recipe)).weights
        thr = weigh(policy, recipe, training_batch(*rollouts()), thr_of(policy, recipe)).weights
        own = torch.stack((weights, shear, nthr, thr))
        assert all(torch.equal(each, own) for each in platform.gather_objects(own))
        (one, passes), (two, _) = (after_a_step(recipe, mode) for mode in ("always", "never"))
        assert passes == 1
        found[name] = weights, shear, nthr, thr, float((one - two).abs().max())
    if dist.get_rank() == 0:
        torch.save(found, sys.argv[2])
    platform.shutdown()


if __name__ == "__main__":
    main()
