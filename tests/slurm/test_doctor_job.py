"""`doctor` as a job on two nodes, whose ranks are read from Slurm's variables."""

from __future__ import annotations

import json
import sys

import pytest
from slurm.cluster import NODES

pytestmark = [pytest.mark.slurm, pytest.mark.slow]


def test_doctor_job_finds_that_a_folder_is_of_one_node(cluster, tmp_path):
    """Each node has a /dev/shm of its own."""
    command = f"srun {sys.executable} -m megatron_resrl doctor --quick --json --output_dir /dev/shm"
    files = [f"--output={tmp_path}/out", f"--error={tmp_path}/err"]
    options = ["--parsable", "--nodes=2", "--ntasks-per-node=1", *files]
    number = cluster.run("sbatch", *options, "--wrap", command).stdout.strip()
    job = cluster.wait(number)
    assert job["ExitCode"] == "1:0", (tmp_path / "err").read_text()
    said = json.loads((tmp_path / "out").read_text())
    assert [each["rank"] for each in said["ranks"]] == [0, 1]
    first, second = said["hosts"]
    assert {first, second} <= set(NODES)
    found = {each["rule"]: each["where"] for each in said["findings"]}
    assert found["hosts.folder_not_shared"] == f"host {second}"
    assert found["folder.in_memory"] == f"hosts {first}, {second}"
    # They reach each other by name and over their own network cards.
    assert not {"hosts.unreachable", "hosts.name", "hosts.clock", "links.unfinished"} & set(found)
    (link,) = said["links"]
    assert link["bandwidth"] > 0
