"""Token weights of the same rollouts in every layout of this world size.

Arguments: folder of the models, output file, and `default` or `slow`, the layouts that are run.
Rank 0 writes the weights of every case [samples, T].
"""

from __future__ import annotations

import dataclasses
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from layouts import begin_layout
from one_step import training_batch, weigh, weighting_of
from tiny_rollouts import LONGEST, THINK_MARKERS, rollouts

from megatron_resrl.config.schema import (
    AlgorithmConfig,
    ModelConfig,
    ParallelConfig,
    PrecisionConfig,
    Recipe,
    ResrlConfig,
)
from megatron_resrl.platform import distributed as platform
from megatron_resrl.policy.batches import fed_sequences
from megatron_resrl.policy.policy import Policy
from megatron_resrl.rollout.worker import build_policy
from megatron_resrl.training.sharing import shard_groups

TP2 = {"tensor_model_parallel_size": 2}
SP2 = TP2 | {"sequence_parallel": True}
PP2 = {"pipeline_model_parallel_size": 2}
VPP2 = PP2 | {"virtual_pipeline_model_parallel_size": 2}
CP2 = {"context_parallel_size": 2}
EP2 = {"expert_model_parallel_size": 2}


@dataclasses.dataclass(frozen=True)
class Layout:
    """What must not change any weight."""

    parallel: dict[str, Any] = dataclasses.field(default_factory=dict)
    megatron: dict[str, Any] = dataclasses.field(default_factory=dict)
    packed: bool = False
    family: str = "qwen3"
    micro_batch_sizes: tuple[int, ...] = (3,)
    layer: int = -2


LAYOUTS: dict[int, dict[str, Layout]] = {
    1: {
        "one": Layout(micro_batch_sizes=(1, 4, 9)),
        "one packed": Layout(packed=True, micro_batch_sizes=(1, 9)),
        "one layer 1": Layout(layer=1),
        "one layer -1": Layout(layer=-1),
        "one moe": Layout(family="qwen3_moe"),
    },
    2: {
        "TP2": Layout(TP2),
        "TP2+SP": Layout(SP2),
        "PP2": Layout(PP2),
        "PP2xVPP2 layer 1": Layout(VPP2, layer=1),
        "TP2+SP layer -1": Layout(SP2, layer=-1),
        "CP2": Layout(CP2),
        "CP2 packed": Layout(CP2, packed=True, micro_batch_sizes=(9,)),
        "DP2": Layout(),
        "TP2+SPxEP2 moe": Layout(
            SP2 | EP2 | {"expert_tensor_parallel_size": 1}, family="qwen3_moe"
        ),
        "DP2xEP2 moe": Layout(EP2, family="qwen3_moe"),
    },
    4: {
        "CP2xTP2+SP packed": Layout(CP2 | SP2, packed=True),
        "TP2xDP2": Layout(TP2),
    },
}
SLOW_LAYOUTS: dict[int, dict[str, Layout]] = {
    1: {
        "one": Layout(micro_batch_sizes=(2, 4)),
        "one packed": Layout(packed=True, micro_batch_sizes=(4,)),
        "one layer 1": Layout(layer=1),
        "one layer -1": Layout(layer=-1),
        "one moe": Layout(family="qwen3_moe"),
    },
    2: {
        "TP2+SP": Layout(SP2, micro_batch_sizes=(1, 4, 9)),
        "TP2+SP packed": Layout(SP2, packed=True),
        "PP2 3/1": Layout(PP2, {"num_layers_in_first_pipeline_stage": 3}),
        "PP2 1/3": Layout(PP2, {"num_layers_in_first_pipeline_stage": 1}),
        "PP2xVPP2": Layout(VPP2, micro_batch_sizes=(1, 4)),
        "PP2xVPP2 packed": Layout(VPP2, packed=True),
        "PP2 layer 1": Layout(PP2, layer=1),
        "CP2": Layout(CP2, micro_batch_sizes=(1, 4)),
        "CP2 packed": Layout(CP2, packed=True),
    },
    4: {
        "CP2xTP2+SP": Layout(CP2 | SP2),
        "CP2xTP2": Layout(CP2 | TP2),
        "TP2+SPxPP2": Layout(SP2 | PP2),
        "TP2+SPxPP2xVPP2": Layout(SP2 | VPP2),
        "TP4+SP": Layout({"tensor_model_parallel_size": 4, "sequence_parallel": True}),
        "CP2xDP2 packed": Layout(CP2, packed=True),
        "PP2xDP2": Layout(PP2),
        "TP2+SPxPP2xEP2 moe": Layout(
            SP2 | PP2 | EP2 | {"expert_tensor_parallel_size": 1}, family="qwen3_moe"
        ),
    },
}
"""Its single ranks are what the others are compared with."""


def recipe(layout: Layout, models: Path, method: str, micro_batch_size: int) -> Recipe:
    return Recipe(
        seed=5,
        model=ModelConfig(path=str(models / layout.family), megatron=layout.megatron),
        parallel=ParallelConfig(**layout.parallel, timeout_minutes=1.0),
        precision=PrecisionConfig(params_dtype="fp32"),
        algorithm=AlgorithmConfig(
            micro_batch_size=micro_batch_size, sequence_packing=layout.packed
        ),
        resrl=ResrlConfig(
            rank=6,
            max_positive_tokens=24,  # fewer than the first group has
            subspace_method=method,
            layer=layout.layer,
        ),
    )


def weights_of(policy: Policy, settings: Recipe) -> tuple[torch.Tensor, list[str]]:
    """[samples, T] weights of all replicas put together, and all groups' reports."""
    samples, positive = rollouts()
    batch = training_batch(samples, positive)
    lengths = fed_sequences(batch, shared=False, multiple=1)
    share = shard_groups(batch, [list(range(len(samples)))], float, lengths).rows
    weighting = weighting_of(policy, settings, THINK_MARKERS)
    weighed = weigh(policy, settings, batch.select(share), weighting)
    whole = torch.full((len(samples), LONGEST), float("nan"))
    for rows, weights in platform.gather_objects((share, weighed.weights)):
        whole[rows] = weights
    reports = [str(report) for report in weighed.reports.values()]
    return whole, [text for texts in platform.gather_objects(reports) for text in texts]


def measure(name: str, layout: Layout, models: Path) -> Iterator[tuple[str, torch.Tensor]]:
    first = recipe(layout, models, "rows", layout.micro_batch_sizes[0])
    begin_layout(first.parallel, seed=0)
    policy = build_policy(first, trainable=False)
    for micro_batch_size in layout.micro_batch_sizes:
        for method in ("rows", "gram"):
            settings = recipe(layout, models, method, micro_batch_size)
            weights, reports = weights_of(policy, settings)
            if micro_batch_size == layout.micro_batch_sizes[0]:
                again, same = weights_of(policy, settings)
                assert torch.equal(weights, again), f"{name}: a repeated run gave other bits"
                assert reports == same
            yield f"{name}/{method}/{micro_batch_size}", weights


def main() -> None:
    models = Path(sys.argv[1])
    layouts = {"default": LAYOUTS, "slow": SLOW_LAYOUTS}[sys.argv[3]]
    found = {
        key: weights.numpy()
        for name, layout in layouts[int(os.environ["WORLD_SIZE"])].items()
        for key, weights in measure(name, layout, models)
    }
    if dist.get_rank() == 0:
        np.savez(sys.argv[2], **{key.replace("/", "|"): value for key, value in found.items()})
    platform.shutdown()


if __name__ == "__main__":
    main()
