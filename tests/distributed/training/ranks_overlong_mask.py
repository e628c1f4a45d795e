"""One step in which some responses are masked, and the weights that their neighbours' tokens get.

Arguments: folder of the models, output folder. Rank 0 prints one line of JSON per layout; that of a
single process saves the weights after its step of GRPO, and the token weights of ResRL.
"""

from __future__ import annotations

import json
import os
import sys
from dataclasses import replace
from pathlib import Path

import torch
import torch.distributed as dist
from layouts import begin_layout
from one_step import training_batch, weigh, weighting_of
from ranks_response_mask import measure, recipe
from tiny_rollouts import rollouts

from megatron_resrl.config.schema import Recipe
from megatron_resrl.platform import distributed as platform
from megatron_resrl.rollout.collect import Sample
from megatron_resrl.rollout.worker import build_policy

MASKED = (0, 7, 13)
"""A right response, and a wrong one of two groups."""
LAYOUTS = {1: {"one": {}}, 2: {"DP2": {}, "PP2": {"pipeline_model_parallel_size": 2}}}


def masked_rollouts() -> list[Sample]:
    samples, _ = rollouts()
    return [replace(each, excluded=place in MASKED) for place, each in enumerate(samples)]


def weights_of(settings: Recipe) -> torch.Tensor:
    """Token weights [samples, T]."""
    begin_layout(settings.parallel, seed=0)
    policy = build_policy(settings, trainable=False)
    samples = masked_rollouts()
    positive = torch.tensor([bool(each.score) and not each.excluded for each in samples])
    batch = training_batch(samples, positive)
    return weigh(policy, settings, batch, weighting_of(policy, settings)).weights


def main() -> None:
    models, output = Path(sys.argv[1]), Path(sys.argv[2])
    for layout, parallel in LAYOUTS[int(os.environ["WORLD_SIZE"])].items():
        for algorithm in ("grpo", "resrl"):
            settings = recipe(models / "qwen3", layout, parallel, algorithm)
            metrics, weights = measure(settings, masked_rollouts())
            if dist.get_rank() == 0:
                case = {"layout": layout, "algorithm": algorithm, "metrics": metrics}
                print(json.dumps(case))
                if (layout, algorithm) == ("one", "grpo"):
                    torch.save(weights, output / "weights.pt")
        if layout == "one":
            torch.save(
                weights_of(recipe(models / "qwen3", "one", {}, "resrl")), output / "weighed.pt"
            )
    platform.shutdown()


if __name__ == "__main__":
    main()
