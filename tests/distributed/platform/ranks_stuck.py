"""Two ranks: the main thread of one is stuck outside of Python. Argument: what it is stuck in."""

from __future__ import annotations

import ctypes
import os
import sys
import threading

import torch.distributed as dist
from megatron.core import parallel_state  # noqa: F401  slow, and must not count as being late

from megatron_resrl.config.schema import ParallelConfig
from megatron_resrl.platform.distributed import initialize
from megatron_resrl.platform.phases import begin_step, named_phase

TIMEOUT_S = 8.0
LONG_S = 100


def main() -> None:
    initialize(ParallelConfig(timeout_minutes=TIMEOUT_S / 60), seed=0)
    begin_step(7)
    dist.barrier()
    if os.environ["RANK"] == "0":
        # It waits for something else than a rank, and for longer than a collective may take.
        with named_phase("rollout"):
            threading.Event().wait(4 * TIMEOUT_S)
        print("rank 0 went on", flush=True)
        os._exit(0)
    with named_phase("update"):
        # As a wait for a CUDA stream: in C, without the interpreter's lock.
        ctypes.CDLL(None).sleep(LONG_S)


if __name__ == "__main__":
    sys.exit(main())
