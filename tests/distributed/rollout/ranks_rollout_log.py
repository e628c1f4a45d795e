"""Writes and reads the log of finished groups on every rank. Argument: working folder."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import torch.distributed as dist

from megatron_resrl.config.schema import OptimizerConfig, ParallelConfig, Recipe
from megatron_resrl.errors import RunFileError
from megatron_resrl.platform.distributed import gather_objects
from megatron_resrl.rollout.engine import Response, TrainingRound
from megatron_resrl.rollout.group_table import Group
from megatron_resrl.rollout.log import RolloutLog, run_identity

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


def read(log: RolloutLog, step: int) -> list[Group]:
    """All groups of a step, in the order of `GROUPS`."""
    found = [group for number in (0, 1) for group in log.read(TrainingRound(step, number))]
    return sorted(found, key=lambda group: [known.key for known in GROUPS].index(group.key))


def refusal(log: RolloutLog) -> str:
    append(log, 4, GROUPS)
    try:
        log.confirm()
    except RunFileError as error:
        return str(error)
    return "nothing"


def survives_any_cut(log: RolloutLog) -> bool:
    """Cut anywhere, a group's file is not used, the others are, and the group can be kept again."""
    append(log, 5, GROUPS)
    (path,) = log.directory.glob("step_000005/round_0_group_00003.*")
    whole = path.read_bytes()
    dist.barrier()
    for size in [*range(0, len(whole), 97), len(whole) - 1]:
        if dist.get_rank() == 0:
            path.write_bytes(whole[:size])
        dist.barrier()
        if read(log, 5) != GROUPS[1:]:
            return False
        dist.barrier()
        append(log, 5, GROUPS[:1])
        if read(log, 5) != GROUPS:
            return False
    return True


def notices_any_flipped_bit(log: RolloutLog) -> bool:
    """Pages, page headers and footer alike."""
    append(log, 6, GROUPS[:1])
    (path,) = log.directory.glob("step_000006/*.parquet")
    whole = path.read_bytes()
    for place in range(0, len(whole), 61):
        content = bytearray(whole)
        content[place] ^= 1
        if dist.get_rank() == 0:
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(content)
        dist.barrier()
        if read(log, 6) != []:
            return False
        dist.barrier()
    return True


def main(work: Path) -> None:
    recipe = Recipe(output_dir=str(work))

    def log_of(recipe: Recipe, contents: str = "") -> RolloutLog:
        return RolloutLog(work / "rollouts", run_identity(recipe, contents))

    log = log_of(recipe)
    seen = {"nothing yet": read(log, 3) == []}
    for step in (2, 3):
        append(log, step, GROUPS)
    log.confirm()
    seen["read again"] = read(log_of(recipe), 3) == GROUPS
    tensor_parallel = replace(recipe, parallel=ParallelConfig(tensor_model_parallel_size=2))
    seen["other layout"] = read(log_of(tensor_parallel), 3) == GROUPS
    recording = replace(recipe, rollout=replace(recipe.rollout, record="elsewhere"))
    seen["recording"] = read(log_of(recording), 3) == GROUPS
    log.discard(until=2)
    dist.barrier()
    seen["discarded"] = read(log, 2) == [] and read(log, 3) == GROUPS
    seen["cut"] = survives_any_cut(log)
    seen["bit flipped"] = notices_any_flipped_bit(log)
    faster = replace(recipe, optimizer=OptimizerConfig(lr=1.0))
    seen["other learning rate"] = read(log_of(faster), 3) == []
    append(log, 3, GROUPS)
    seen["other model at the same place"] = read(log_of(recipe, "its digest"), 3) == []
    if dist.get_rank() == 0:
        (log.directory / "step_000003.groups").write_bytes(b"GRP1 of an earlier version")
    dist.barrier()
    append(log, 3, GROUPS)
    seen["beside a file of an earlier version"] = read(log, 3) == GROUPS
    seen["which is deleted"] = not (log.directory / "step_000003.groups").exists()
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
