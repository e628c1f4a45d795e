"""The Slurm of these tests: nodes of their own, and nothing left of it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from ranks import REPOSITORY
from slurm.cluster import NODES, wait_until

pytestmark = pytest.mark.slurm

HOLD = """
import sys
from pathlib import Path

sys.path.insert(0, sys.argv[1])
from slurm.cluster import Cluster

with Cluster(Path(sys.argv[2])) as cluster:
    cluster.run("sbatch", "--nodes=2", "--wrap", "srun sleep 600")
    print("up", flush=True)
    sys.stdin.read()
"""


def processes_of(folder: Path) -> list[str]:
    """Command lines of the processes that know a cluster's configuration."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            known = os.fsencode(folder) in (process / "environ").read_bytes()
            found += [(process / "cmdline").read_text().replace("\0", " ")] if known else []
        except OSError:
            continue  # It has ended.
    return found


def test_cluster_leaves_nothing_when_its_tests_are_killed(tmp_path):
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(REPOSITORY / "tests"), str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert holder.stdout is not None
    assert holder.stdout.readline() == "up\n"
    assert any("slurmd" in each for each in processes_of(tmp_path))
    holder.send_signal(signal.SIGKILL)
    holder.communicate()
    wait_until(lambda: not processes_of(tmp_path), 60)
    assert str(tmp_path) not in Path("/proc/mounts").read_text()


def test_cluster_nodes_are_hosts_of_their_own(cluster):
    told = cluster.run(
        "srun", f"--nodes={len(NODES)}", "bash", "-c", "hostname; ip -4 -o addr show eth0"
    ).stdout
    lines = told.splitlines()
    assert set(NODES) < set(lines)
    assert len({line.split()[3] for line in lines if "eth0" in line}) == len(NODES)
