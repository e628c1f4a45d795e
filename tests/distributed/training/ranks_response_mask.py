"""One step on rollouts with tokens that the policy did not generate, in every layout of this size.

Also with a correction of another distribution that they were drawn from.

Arguments: folder of the models, output folder. Rank 0 prints one line of JSON per case and saves
the weights after the step of GRPO in one process.
"""

from __future__ import annotations

import json
import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from layouts import begin_layout
from one_step import take_step, training_batch, weigh, weighting_of
from tiny_rollouts import CAP, rollouts, with_engine_log_probs

from megatron_resrl.algorithms import CorrectionMethod
from megatron_resrl.config.schema import (
    AlgorithmConfig,
    CorrectionConfig,
    ModelConfig,
    OptimizerConfig,
    ParallelConfig,
    PrecisionConfig,
    Recipe,
    ResrlConfig,
)
from megatron_resrl.platform import distributed as platform
from megatron_resrl.rollout.collect import Sample
from megatron_resrl.rollout.worker import build_policy
from megatron_resrl.weights.hugging_face import export_weights

SP2 = {"tensor_model_parallel_size": 2, "sequence_parallel": True}
LAYOUTS: dict[int, dict[str, dict[str, Any]]] = {
    1: {"one": {}, "one packed": {}},
    2: {
        "TP2": {"tensor_model_parallel_size": 2},
        "TP2+SP packed": SP2,
        "PP2": {"pipeline_model_parallel_size": 2},
        "CP2": {"context_parallel_size": 2},
        "CP2 packed": {"context_parallel_size": 2},
        "DP2": {},
    },
}
ALGORITHMS = {"grpo": "sequence_mean", "resrl": "token_mean"}
"""With the aggregation that each is measured with."""
CORRECTIONS = {"grpo": "token_tis", "resrl": "sequence_tis"}
"""Used for rollouts of the kind `corrected`."""


def with_masks(kind: str) -> list[Sample]:
    """`masked`; `corrected`, with log-probabilities of an engine; `none`, without masks;
    `all true`."""
    samples, _ = rollouts(masked=kind in ("masked", "corrected"))
    if kind == "corrected":
        return with_engine_log_probs(samples)
    if kind != "all true":
        return samples
    return [
        replace(
            each,
            response=replace(
                each.response, response_mask=(True,) * each.response.num_generated_tokens
            ),
        )
        for each in samples
    ]


def recipe(
    model: Path,
    layout: str,
    parallel: dict[str, Any],
    algorithm: str,
    correction: CorrectionMethod = "none",
) -> Recipe:
    return Recipe(
        seed=5,
        model=ModelConfig(path=str(model)),
        parallel=ParallelConfig(**parallel, timeout_minutes=1.0),
        precision=PrecisionConfig(params_dtype="fp32"),
        optimizer=OptimizerConfig(lr=1e-2, lr_warmup_steps=0, adam_eps=1e-3, weight_decay=0.0),
        correction=CorrectionConfig(method=correction, cap=CAP, warn_kl=None),
        algorithm=AlgorithmConfig(
            name=algorithm,
            micro_batch_size=3,
            aggregation=ALGORITHMS[algorithm],
            sequence_packing="packed" in layout,
        ),
        resrl=ResrlConfig(
            rank=6,
            subspace_method="rows",
            diagnose_every=1,
            interference_tokens=100,
        ),
    )


def measure(
    settings: Recipe, samples: list[Sample]
) -> tuple[dict[str, float], dict[str, torch.Tensor]]:
    """Metrics of a step, and the weights after it."""
    begin_layout(settings.parallel, seed=0)
    policy = build_policy(settings)
    outcome = take_step(policy, settings, samples)
    return outcome.metrics, dict(export_weights(policy.modules, policy.hf_config))


def weights_of(settings: Recipe) -> tuple[torch.Tensor, list[tuple[int, int]]]:
    """Token weights [samples, T], and positive and negative tokens of each group."""
    begin_layout(settings.parallel, seed=0)
    policy = build_policy(settings, trainable=False)
    samples, positive = rollouts(masked=True)
    batch = training_batch(samples, positive)
    found = weigh(policy, settings, batch, weighting_of(policy, settings))
    counts = [(report.positive_tokens, report.negative_tokens) for report in found.reports.values()]
    return found.weights, counts


def main() -> None:
    models, output = Path(sys.argv[1]), Path(sys.argv[2])
    ranks = int(os.environ["WORLD_SIZE"])
    for layout, parallel in LAYOUTS[ranks].items():
        for algorithm in ALGORITHMS:
            kinds = ("masked", "corrected")
            if layout == "one":
                kinds += ("none", "all true")
            for kind in kinds:
                method = CORRECTIONS[algorithm] if kind == "corrected" else "none"
                settings = recipe(models / "qwen3", layout, parallel, algorithm, method)
                metrics, weights = measure(settings, with_masks(kind))
                if dist.get_rank() == 0:
                    case = {"layout": layout, "algorithm": algorithm, "kind": kind}
                    print(json.dumps(case | {"metrics": metrics}))
                    if layout == "one":
                        torch.save(weights, output / f"{algorithm} {kind}.pt")
    if ranks == 1:
        settings = recipe(models / "qwen3", "one", {}, "resrl")
        torch.save(weights_of(settings), output / "weighed.pt")
    platform.shutdown()


if __name__ == "__main__":
    main()
