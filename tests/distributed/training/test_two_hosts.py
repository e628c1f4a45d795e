"""Hosts that differ in names, clocks and file systems: two namespaces of this machine."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from ranks import REPOSITORY

SCRIPT = Path(__file__).with_name("ranks_two_hosts.py")
_UNSHARE = ["unshare", "--uts", "--mount", "true"]


def may_unshare() -> bool:
    """Whether this user can make namespaces with a name and mounts of their own."""
    try:
        return subprocess.run(_UNSHARE, capture_output=True).returncode == 0
    except FileNotFoundError:
        return False


@pytest.mark.skipif(not may_unshare(), reason="needs root, for namespaces with names and mounts")
def test_hosts_with_own_clocks_and_folders_are_named(tmp_path: Path) -> None:
    shared, own = tmp_path / "shared", tmp_path / "own"
    own.mkdir()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    ranks = []
    for rank in (0, 1):
        setup = f"hostname host{rank}; " + (f"mount -t tmpfs none {own}; " if rank else "")
        place = {"RANK": str(rank), "LOCAL_RANK": "0", "WORLD_SIZE": "2", "OMP_NUM_THREADS": "1"}
        place |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "PYTHONPATH": str(REPOSITORY)}
        place |= {"GLOO_SOCKET_IFNAME": "lo"}  # The new names lead to no address.
        command = [sys.executable, str(SCRIPT), str(shared), str(own)]
        ranks.append(
            subprocess.Popen(
                ["unshare", "--uts", "--mount", "bash", "-c", f'{setup} exec "$@"', "_", *command],
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                env=os.environ | place,
            )
        )
    said = [rank.communicate(timeout=600) for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0, 0], said
    outputs = [output.splitlines() for output, _ in said]
    assert outputs[0][0].startswith("the clock of host host1 is 37 s ahead of the other hosts'")
    refusal = (
        f"rank 1 (host host1, local rank 0): output_dir = '{own}' is not the folder that host "
        "host0 writes into; give one on a file system that all hosts share"
    )
    assert outputs[0][1:] == ["shared", refusal, "left: []"]
    assert outputs[1] == ["shared", refusal, "left: []"]
