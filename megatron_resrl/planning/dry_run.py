"""Dry runs: the product's own code for one rank of a job, on a device without numbers."""

from __future__ import annotations

import importlib
import multiprocessing
import os
import pickle
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

from megatron_resrl.config.schema import RunSettings
from megatron_resrl.errors import RunError
from megatron_resrl.planning.layers import Layers
from megatron_resrl.planning.machine import Machine
from megatron_resrl.planning.records import RankRecord
from megatron_resrl.planning.supervised_workload import PretrainWorkload, SftWorkload
from megatron_resrl.planning.workload import Workload

AnyWorkload = Workload | PretrainWorkload | SftWorkload
"""What a dry run of a stage trains on."""

_PROCESS: dict[Layers, str] = {
    "transformer_engine": "megatron_resrl.planning.engine_layers",
    "local": "megatron_resrl.planning.local_layers",
}
"""Layers -> module that makes a new process a rank on such layers when it imports it."""

_ENGINE_PROGRAM = "megatron_resrl.planning.engine_program"


class DryRunFailed(RunError):
    """A rank ended without a record."""


def dry_run(
    recipe: RunSettings,
    rank: int,
    world_size: int,
    workload: AnyWorkload,
    *,
    machine: Machine | None = None,
) -> RankRecord:
    """What one rank of a job holds, sends, waits for and computes, phase by phase.

    Builds the policy from config.json alone and takes steps with it, in a process of its own.
    Counts are those of a whole step of sequences of the workload's lengths.

    Args:
        recipe: Checked settings; `model.path` needs config.json and nothing else.
        rank: Global rank, see `distinct_ranks`.
        world_size: Ranks of the job.
        workload: Lengths of sequences, of the kind that the stage takes.
        machine: Default: megatron-core's own layers on an H100.

    Raises:
        DryRunFailed: The process of the rank was killed.
        Exception: What the product raised in it: on a GPU it would raise the same.
    """
    return dry_runs(recipe, [rank], world_size, workload, machine=machine)[0]


def dry_runs(
    recipe: RunSettings,
    ranks: Sequence[int],
    world_size: int,
    workload: AnyWorkload,
    *,
    machine: Machine | None = None,
    processes: int = 1,
) -> list[RankRecord]:
    """`dry_run` of several ranks; their processes import the libraries once.

    Args:
        recipe: See `dry_run`.
        ranks: Global ranks.
        world_size: Ranks of the job.
        workload: Lengths of sequences, of the kind that the stage takes.
        machine: See `dry_run`.
        processes: How many ranks run at the same time.
    """
    machine = machine or Machine()
    if machine.layers == "transformer_engine":
        return _in_own_program(recipe, ranks, world_size, workload, machine, processes)
    return run_ranks(recipe, ranks, world_size, workload, machine, processes)


def run_ranks(
    recipe: RunSettings,
    ranks: Sequence[int],
    world_size: int,
    workload: AnyWorkload,
    machine: Machine,
    processes: int,
) -> list[RankRecord]:
    """`dry_runs` with the processes of ranks started from here.

    What they share has been imported once by multiprocessing's fork server, which a program has one
    of: its ranks are all on layers of one kind.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([_PROCESS[machine.layers]])
    before = os.environ.get("PYTHONWARNINGS")
    os.environ["PYTHONWARNINGS"] = "ignore"  # Libraries are not to say that they find no CUDA.
    try:
        # What a rank patches must not reach another one: each has a process of its own.
        with ProcessPoolExecutor(processes, context, max_tasks_per_child=1) as pool:
            pending = [
                pool.submit(_run, recipe, rank, world_size, workload, machine) for rank in ranks
            ]
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


def _run(
    recipe: RunSettings, rank: int, world_size: int, workload: AnyWorkload, machine: Machine
) -> RankRecord:
    """In the rank's process."""
    process = importlib.import_module(_PROCESS[machine.layers])
    try:
        return process.run_rank(recipe, rank, world_size, workload, machine)
    except Exception as error:
        raise sendable(error) from error


def sendable(error: Exception) -> Exception:
    """The error, or one of the same words if it holds what cannot go to another process, as torch's
    errors of mixed devices do."""
    try:
        pickle.dumps(error)
    # Whatever refuses to be pickled raises errors of its own classes.
    except Exception:
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error


def _in_own_program(*arguments: Any) -> list[RankRecord]:
    """`run_ranks` in a program of its own: megatron-core takes Transformer Engine's layers only if
    it is imported after them, and this program may have imported it."""
    with tempfile.TemporaryDirectory() as folder:
        given, found = Path(folder, "arguments"), Path(folder, "result")
        given.write_bytes(pickle.dumps(arguments))
        subprocess.run(
            [sys.executable, "-m", _ENGINE_PROGRAM, given, found],
            env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            check=False,
        )
        if not found.exists():
            raise DryRunFailed("the program of the dry run ended without a result; see above")
        result = pickle.loads(found.read_bytes())
    if isinstance(result, Exception):
        raise result
    return result
