"""Displaced likelihood, interference and refreshed weights of one step in every layout.

Arguments: folder of the models. Rank 0 prints one line of JSON per layout.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import torch.distributed as dist
from layouts import LAYOUTS, begin_layout
from one_step import take_step
from tiny_rollouts import rollouts

from megatron_resrl.config.schema import (
    AlgorithmConfig,
    ModelConfig,
    OptimizerConfig,
    ParallelConfig,
    PrecisionConfig,
    Recipe,
    ResrlConfig,
)
from megatron_resrl.platform import distributed as platform
from megatron_resrl.rollout.worker import build_policy
from megatron_resrl.weights.hugging_face import save_hf_model

REFRESHES = ("rollout", "minibatch")


def recipe(model: Path, layout: str, parallel: dict[str, Any], refresh: str) -> Recipe:
    return Recipe(
        seed=5,
        model=ModelConfig(path=str(model)),
        parallel=ParallelConfig(**parallel, timeout_minutes=1.0),
        precision=PrecisionConfig(params_dtype="fp32"),
        optimizer=OptimizerConfig(lr=1e-2, lr_warmup_steps=0, adam_eps=1e-3),
        algorithm=AlgorithmConfig(micro_batch_size=3, updates_per_step=2),
        resrl=ResrlConfig(
            rank=6,
            refresh=refresh,
            subspace_method="rows",
            diagnose_every=1,
            interference_tokens=7,
            logit_factor=True,
        ),
    )


def measure(models: Path, layout: str, parallel: dict[str, Any], refresh: str) -> dict[str, float]:
    settings = recipe(models / "qwen3", layout, parallel, refresh)
    begin_layout(settings.parallel, seed=0)
    policy = build_policy(settings)
    samples, _ = rollouts()
    outcome = take_step(policy, settings, samples)
    if (layout, refresh) == ("one", "rollout"):
        save_hf_model(policy.modules, policy.hf_config, models / "after")
    return outcome.metrics


def main() -> None:
    models = Path(sys.argv[1])
    for name, parallel in LAYOUTS[int(os.environ["WORLD_SIZE"])].items():
        for refresh in REFRESHES:
            metrics = measure(models, name, parallel, refresh)
            if dist.get_rank() == 0:
                print(json.dumps({"layout": name, "refresh": refresh, "metrics": metrics}))
    platform.shutdown()


if __name__ == "__main__":
    main()
