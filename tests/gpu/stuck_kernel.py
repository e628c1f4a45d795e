"""Rank 0 of two, whose main thread waits for a kernel that does not end; rank 1 never came."""

from __future__ import annotations

import ctypes

import torch
from torch.distributed import TCPStore

from megatron_resrl.platform.phases import begin_step, named_phase, start_heartbeat

STUCK_AFTER_S, LONG_S = 3.0, 60
CYCLES_PER_S = 2_000_000_000
"""Of a GPU's clock, or more."""


def main() -> None:
    store = TCPStore("localhost", 0, is_master=True, wait_for_workers=False)
    start_heartbeat(store, 0, 2, STUCK_AFTER_S)
    begin_step(7)
    with named_phase("update"):
        if torch.cuda.is_available():
            for _ in range(LONG_S):
                torch.cuda._sleep(CYCLES_PER_S)
            torch.cuda.synchronize()
        else:  # As a wait for a stream: in C, without the interpreter's lock.
            ctypes.CDLL(None).sleep(LONG_S)


if __name__ == "__main__":
    main()
