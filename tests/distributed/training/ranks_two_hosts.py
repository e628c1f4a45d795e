"""Two ranks on hosts of different names, rank 1 with a clock that is ahead and a folder of its own.

Arguments: a folder that both hosts share, and one that each has for itself. Each rank prints what
it is told.
"""

from __future__ import annotations

import logging
import os
import sys
import time
from pathlib import Path

from megatron_resrl.config.schema import ParallelConfig
from megatron_resrl.errors import InputError
from megatron_resrl.platform import hosts
from megatron_resrl.platform.distributed import initialize, shutdown
from megatron_resrl.training import run_lock
from megatron_resrl.training.run_lock import RunLock


def main() -> None:
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stdout)
    shared, own = map(Path, sys.argv[1:])
    initialize(ParallelConfig(timeout_minutes=2), seed=0)
    if os.environ["RANK"] == "1":
        real = time.time
        time.time = lambda: real() + 37.0
    hosts.require_alike_hosts()
    with RunLock(shared):
        print("shared", flush=True)
    run_lock.SEEN_WITHIN_S = 1.0
    try:
        with RunLock(own):
            print("not reached", flush=True)
    except InputError as error:
        print(error, flush=True)
    print(f"left: {sorted(own.iterdir())}", flush=True)
    shutdown()


if __name__ == "__main__":
    main()
