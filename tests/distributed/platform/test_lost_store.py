"""The rank that holds the job's store is lost: the others still end, and say what they know."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from ranks import REPOSITORY


@pytest.mark.parametrize("how", ["SIGKILL", pytest.param("SIGSTOP", marks=pytest.mark.faults)])
def test_lost_store_ends_a_rank_and_is_named(how: str) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    ranks = [_start(rank, port, how) for rank in (0, 1)]
    try:
        output, errors = ranks[1].communicate(timeout=600)
    finally:
        for rank in ranks:
            rank.kill()
            rank.communicate()
    assert ranks[1].returncode == 0, errors
    line = next(line for line in output.splitlines() if "|" in line)
    seconds, message = line.split("|", 1)
    place = f"rank 1 (host {socket.gethostname()}, local rank 1)"
    assert message.startswith(f"phase 'sync', {place}, step 3: another rank did not take part")
    assert "the job's store does not answer: its host, that of rank 0, is lost" in message
    assert float(seconds) < 60


def _start(rank: int, port: int, how: str) -> subprocess.Popen[str]:
    place = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"}
    place |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, str(Path(__file__).with_name("ranks_lost_store.py")), how],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=dict(os.environ, PYTHONPATH=str(REPOSITORY), **place),
    )
