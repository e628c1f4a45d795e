"""Two ranks: one does not arrive at a collective, and later dies. Rank 0 prints what it is told.

Argument: an empty folder, in which the ranks leave marks that they are alive.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import torch.distributed as dist
from megatron.core import parallel_state  # noqa: F401  slow, and must not count as being late

from megatron_resrl.config.schema import ParallelConfig
from megatron_resrl.platform.distributed import initialize
from megatron_resrl.platform.phases import CollectiveTimeout, begin_step, named_phase

TIMEOUT_S = 4.0


def told(phase: str, group: dist.ProcessGroup | None = None) -> str:
    started = time.monotonic()
    try:
        with named_phase(phase):
            dist.barrier(group=group)
    except CollectiveTimeout as error:
        text = str(error).replace("\n", " ")
        return f"{phase}|{time.monotonic() - started:.1f}|{text}"
    return f"{phase}|{time.monotonic() - started:.1f}|nothing"


def wait_for(*files: Path) -> None:
    while not all(file.exists() for file in files):
        time.sleep(0.05)


def main() -> None:
    folder, rank = Path(sys.argv[1]), int(os.environ["RANK"])
    (folder / f"imported_{rank}").touch()
    wait_for(folder / "imported_0", folder / "imported_1")
    initialize(ParallelConfig(timeout_minutes=TIMEOUT_S / 60), seed=0)
    second = dist.new_group([0, 1])
    dist.barrier()
    dist.barrier(group=second)
    if rank == 0:
        print(told("rollout"), flush=True)
        (folder / "waited").touch()
        print(told("update", second), flush=True)
    else:
        begin_step(3)
        with named_phase("scoring"):
            wait_for(folder / "waited")
        with named_phase("update"):
            time.sleep(0.5)
    # At once, without closing connections in order, as a killed process.
    os._exit(0)


if __name__ == "__main__":
    main()
