"""Dry runs: the product's own code for one rank of a job, on a device without numbers."""

from __future__ import annotations

import importlib
import multiprocessing
import os
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool

from megatron_resrl.config.schema import Recipe
from megatron_resrl.errors import RunError
from megatron_resrl.planning.records import RankRecord
from megatron_resrl.planning.workload import Workload

_RANK_PROCESS = "megatron_resrl.planning.rank_process"


class DryRunFailed(RunError):
    """A rank ended without a record."""


def dry_run(recipe: Recipe, rank: int, world_size: int, workload: Workload) -> RankRecord:
    """What one rank of a job holds, sends, waits for and computes, phase by phase.

    Builds the policy from config.json alone and takes steps with it, in a process of its own.
    Counts are those of a whole step of prompts and responses of the workload's lengths.

    Args:
        recipe: Checked settings; `model.path` needs config.json and nothing else.
        rank: Global rank, see `distinct_ranks`.
        world_size: Ranks of the job.
        workload: Lengths of prompts and responses.

    Raises:
        DryRunFailed: The process of the rank was killed.
        Exception: What the product raised in it: on a GPU it would raise the same.
    """
    return dry_runs(recipe, [rank], world_size, workload)[0]


def dry_runs(
    recipe: Recipe,
    ranks: Sequence[int],
    world_size: int,
    workload: Workload,
    *,
    processes: int = 1,
) -> list[RankRecord]:
    """`dry_run` of several ranks; their processes import the libraries once.

    Args:
        recipe: See `dry_run`.
        ranks: Global ranks.
        world_size: Ranks of the job.
        workload: Lengths of prompts and responses.
        processes: How many ranks run at the same time.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([_RANK_PROCESS])
    before = os.environ.get("PYTHONWARNINGS")
    os.environ["PYTHONWARNINGS"] = "ignore"  # Libraries are not to say that they find no CUDA.
    try:
        # What a rank patches must not reach another one: each has a process of its own.
        with ProcessPoolExecutor(processes, context, max_tasks_per_child=1) as pool:
            pending = [pool.submit(_run, recipe, rank, world_size, workload) for rank in ranks]
            return [each.result() for each in pending]
    except BrokenProcessPool as error:
        raise DryRunFailed(
            "a process of the dry run ended without a word; the machine's memory may not suffice "
            "for it"
        ) from error
    finally:
        if before is None:
            del os.environ["PYTHONWARNINGS"]
        else:
            os.environ["PYTHONWARNINGS"] = before


def _run(recipe: Recipe, rank: int, world_size: int, workload: Workload) -> RankRecord:
    """In the rank's process."""
    return importlib.import_module(_RANK_PROCESS).run_rank(recipe, rank, world_size, workload)
