"""Two ranks without torchrun's agent: rank 0, which holds the store, is killed or stopped.

Argument: "SIGKILL" or "SIGSTOP". Rank 1 prints what it is told.
"""

from __future__ import annotations

import os
import signal
import sys
import time

import torch.distributed as dist
from megatron.core import parallel_state  # noqa: F401  slow, and must not count as being late

from megatron_resrl.config.schema import ParallelConfig
from megatron_resrl.platform.distributed import initialize, shutdown
from megatron_resrl.platform.phases import CollectiveTimeout, begin_step, named_phase


def main() -> None:
    initialize(ParallelConfig(timeout_minutes=0.15), seed=0)
    begin_step(3)
    with named_phase("update"):
        dist.barrier()
    if os.environ["RANK"] == "0":
        time.sleep(1.5)  # Until after a heartbeat.
        os.kill(os.getpid(), getattr(signal, sys.argv[1]))
    started = time.monotonic()
    try:
        with named_phase("sync"):
            dist.barrier()
    except CollectiveTimeout as error:
        text = str(error).replace("\n", " ")
        print(f"{time.monotonic() - started:.1f}|{text}", flush=True)
    shutdown()


if __name__ == "__main__":
    main()
