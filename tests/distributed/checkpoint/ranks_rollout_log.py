"""Writes and reads the log of rollouts on every rank. Argument: working folder."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import torch.distributed as dist

from megatron_resrl.checkpoint import RolloutLog
from megatron_resrl.config.schema import OptimizerConfig, ParallelConfig, Recipe
from megatron_resrl.platform.distributed import gather_objects
from megatron_resrl.rollout.engine import Response

GROUPS = {
    0: (
        (4, 9),
        [Response((5, 1), (-0.1, -1 / 3), "stop"), Response((7,), (-2.5e-9,), "length")],
    ),
    5: (
        (8,),
        [
            Response((4,), (0.0,), "stop", None, (2, 3), 0.5),
            Response((2, 3, 1), (-1.0, 0.0, -0.7), "stop", (True, False, True), (1, 1)),
        ],
    ),
}


def write(log: RolloutLog, step: int) -> None:
    if dist.get_rank() == 0:
        for prompt, (prompt_ids, responses) in GROUPS.items():
            log.write(step, 0, prompt, prompt_ids, responses)
    dist.barrier()


def main(work: Path) -> None:
    recipe = Recipe(output_dir=str(work))
    log = RolloutLog.of_run(recipe)
    seen = {"nothing yet": log.read(3) == {}}
    for step in (2, 3):
        write(log, step)
    seen["read again"] = RolloutLog.of_run(recipe).read(3) == GROUPS
    seen["other round"] = log.read(3, 1) == {}
    tensor_parallel = replace(recipe, parallel=ParallelConfig(tensor_model_parallel_size=2))
    seen["other layout"] = RolloutLog.of_run(tensor_parallel).read(3) == GROUPS
    faster = replace(recipe, optimizer=OptimizerConfig(lr=1.0))
    seen["other learning rate"] = RolloutLog.of_run(faster).read(3) == {}
    seen["without identity"] = RolloutLog(log.directory).read(3) == GROUPS
    log.discard(until=2)
    dist.barrier()
    seen["discarded"] = log.read(2) == {} and log.read(3) == GROUPS
    if dist.get_rank() == 0:
        damaged = log.directory / "step_000003" / "round_0_group_000005.parquet"
        damaged.write_bytes(b"PAR1 half a file")
    seen["damaged"] = log.read(3) == {0: GROUPS[0]}
    log.discard()
    dist.barrier()
    seen["files"] = not list(log.directory.iterdir())
    everyone = gather_objects(seen)
    if dist.get_rank() == 0:
        print("RESULT " + json.dumps(everyone))


if __name__ == "__main__":
    dist.init_process_group("gloo")
    main(Path(sys.argv[1]))
