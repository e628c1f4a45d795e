"""Writes and reads the log of finished groups on every rank. Argument: working folder."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import torch.distributed as dist

from megatron_resrl.checkpoint import CheckpointError
from megatron_resrl.config.schema import OptimizerConfig, ParallelConfig, Recipe
from megatron_resrl.platform.distributed import gather_objects
from megatron_resrl.rollout.engine import Response
from megatron_resrl.rollout.group_table import Group
from megatron_resrl.rollout.log import RolloutLog

GROUPS = [
    Group(
        0, 3, (9, 9), [Response((5, 1), (-0.1, -1 / 3), "stop"), Response((7,), (0.0,), "length")]
    ),
    Group(0, 1, (9,), [Response((4,), (-2.5e-9,), "stop", (True,), (3, 5), -0.5)]),
    Group(1, 0, (8,), [Response((2, 3, 1), (0.0, -3.0, -0.7), "stop", (False, True, True))]),
]


def append(log: RolloutLog, step: int, groups: list[Group]) -> None:
    """On rank 0, while the others wait."""
    if dist.get_rank() == 0:
        for group in groups:
            log.append(step, group)
    dist.barrier()


def spoil(path: Path, size: int) -> None:
    """Cuts a file on rank 0 after so many bytes; a negative number counts from its end."""
    if dist.get_rank() == 0:
        path.write_bytes(path.read_bytes()[:size])
    dist.barrier()


def refusal(log: RolloutLog) -> str:
    append(log, 4, GROUPS)
    try:
        log.confirm()
    except CheckpointError as error:
        return str(error)
    return "nothing"


def survives_any_cut(log: RolloutLog) -> bool:
    """Cut anywhere, a file gives its first whole groups, and goes on from there."""
    append(log, 5, GROUPS)
    path = log.directory / "step_000005.groups"
    whole = path.read_bytes()
    dist.barrier()
    kept = []
    for size in range(0, len(whole) + 1, 97):
        if dist.get_rank() == 0:
            path.write_bytes(whole[:size])
        dist.barrier()
        found = log.read(5)
        kept.append(len(found))
        append(log, 5, GROUPS[len(found) :])
        if log.read(5) != GROUPS or found != GROUPS[: len(found)]:
            return False
    return kept == sorted(kept) and set(kept) >= {0, 1, 2}


def main(work: Path) -> None:
    recipe = Recipe(output_dir=str(work))
    log = RolloutLog(recipe)
    seen = {"nothing yet": log.read(3) == []}
    for step in (2, 3):
        append(log, step, GROUPS)
    log.confirm()
    seen["read again"] = RolloutLog(recipe).read(3) == GROUPS
    tensor_parallel = replace(recipe, parallel=ParallelConfig(tensor_model_parallel_size=2))
    seen["other layout"] = RolloutLog(tensor_parallel).read(3) == GROUPS
    recording = replace(recipe, rollout=replace(recipe.rollout, record="elsewhere"))
    seen["recording"] = RolloutLog(recording).read(3) == GROUPS
    log.discard(until=2)
    dist.barrier()
    seen["discarded"] = log.read(2) == [] and log.read(3) == GROUPS
    seen["cut"] = survives_any_cut(log)
    faster = replace(recipe, optimizer=OptimizerConfig(lr=1.0))
    seen["other learning rate"] = RolloutLog(faster).read(3) == []
    append(log, 3, GROUPS)
    seen["other model at the same place"] = RolloutLog(recipe, "its digest").read(3) == []
    append(log, 3, GROUPS)
    path = log.directory / "step_000003.groups"
    spoil(path, -20)
    if dist.get_rank() == 0:
        content = bytearray(path.read_bytes())
        content[100] ^= 1
        path.write_bytes(content)
    dist.barrier()
    seen["bit flipped"] = log.read(3) == []
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
