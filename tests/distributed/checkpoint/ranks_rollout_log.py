"""Writes and reads the log of rollouts on every rank. Argument: working folder."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import torch.distributed as dist

from megatron_resrl.checkpoint import CheckpointError, RolloutLog
from megatron_resrl.config.schema import OptimizerConfig, ParallelConfig, Recipe
from megatron_resrl.platform.distributed import gather_objects
from megatron_resrl.rollout.engine import Response

RESPONSES = [
    [Response((5, 1), (-0.1, -1 / 3), "stop"), Response((7,), (-2.5e-9,), "length")],
    [Response((4,), (0.0,), "stop"), Response((2, 3, 1), (-1.0, -3.0, -0.7), "stop")],
]


def refusal(log: RolloutLog) -> str:
    try:
        log.write(4, RESPONSES)
    except CheckpointError as error:
        return str(error)
    return "nothing"


def main(work: Path) -> None:
    recipe = Recipe(output_dir=str(work))
    log = RolloutLog(recipe)
    seen = {"nothing yet": log.read(3) is None}
    for step in (2, 3):
        log.write(step, RESPONSES)
    seen["read again"] = RolloutLog(recipe).read(3) == RESPONSES
    tensor_parallel = replace(recipe, parallel=ParallelConfig(tensor_model_parallel_size=2))
    seen["other layout"] = RolloutLog(tensor_parallel).read(3) == RESPONSES
    faster = replace(recipe, optimizer=OptimizerConfig(lr=1.0))
    seen["other learning rate"] = RolloutLog(faster).read(3) is None
    log.discard(until=2)
    seen["discarded"] = log.read(2) is None and log.read(3) == RESPONSES
    if dist.get_rank() == 0:
        (log.directory / "step_000003.parquet").write_bytes(b"PAR1 half a file")
    seen["damaged"] = log.read(3) is None
    log.discard()
    dist.barrier()
    seen["files"] = not list(log.directory.iterdir())
    dist.barrier()
    if dist.get_rank() == 0:
        log.directory.rmdir()
        log.directory.write_text("a file where the folder should be")
    seen["refused"] = "cannot be written or read" in refusal(log)
    everyone = gather_objects(seen)
    if dist.get_rank() == 0:
        print("RESULT " + json.dumps(everyone))


if __name__ == "__main__":
    dist.init_process_group("gloo")
    main(Path(sys.argv[1]))
