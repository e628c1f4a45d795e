"""Two ranks, as two pipeline stages and as two replicas: what they draw, and how objects travel."""

from __future__ import annotations

import json

import torch
import torch.distributed as dist
from megatron.core.tensor_parallel.random import get_cuda_rng_tracker

from megatron_resrl.config.schema import ParallelConfig
from megatron_resrl.platform import distributed
from megatron_resrl.platform.distributed import (
    broadcast_object,
    gather_objects,
    initialize,
    shutdown,
)


def drawn(**layout: int) -> list[list[float]]:
    """Of each rank: a number of megatron-core's tracker, and one of torch's own generator."""
    initialize(ParallelConfig(**layout), seed=5)
    with get_cuda_rng_tracker().fork():
        tracked = torch.rand(1).item()
    return gather_objects([tracked, torch.rand(1).item()])


def main() -> None:
    found = {
        "stages": drawn(pipeline_model_parallel_size=2),
        "replicas": drawn(),
        "object": broadcast_object({"from": dist.get_rank()}, source=1),
        "backend": dist.get_backend(distributed._object_group),
    }
    if dist.get_rank() == 0:
        print(json.dumps({"found": found}))
    shutdown()


if __name__ == "__main__":
    main()
