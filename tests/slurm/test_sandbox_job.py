"""Programs of a model in a job of Slurm."""

from __future__ import annotations

import sys

import pytest
from sandboxes import require_backend
from slurm.cluster import NODES

pytestmark = [pytest.mark.slurm, pytest.mark.slow]

SCRIPT = """\
import os
from megatron_resrl.config.schema_questions import CodeConfig
from megatron_resrl.rewards.code import code_reward
from megatron_resrl.sandbox.backends import find_backend

code = CodeConfig(timeout_s=20.0)
program = "```python\\nimport os\\nprint(os.listdir('/tmp'), sorted(os.environ))\\n```"
tests = {"inputs": [""], "outputs": ["[] []"]}
found = find_backend(code), code_reward(program, tests, settings=code)
print(os.environ["SLURMD_NODENAME"], *found, flush=True)
"""


def test_sandbox_works_in_a_job(cluster, tmp_path):
    require_backend("bubblewrap")
    (tmp_path / "script.py").write_text(SCRIPT)
    command = f"srun {sys.executable} {tmp_path}/script.py"
    files = [f"--output={tmp_path}/out", f"--error={tmp_path}/err"]
    options = ["--parsable", "--nodes=2", "--ntasks-per-node=1", *files]
    number = cluster.run("sbatch", *options, "--wrap", command).stdout.strip()
    job = cluster.wait(number)
    assert job["ExitCode"] == "0:0", (tmp_path / "err").read_text()
    lines = [line.split() for line in (tmp_path / "out").read_text().splitlines()]
    assert len(lines) == 2
    assert {node for node, *_ in lines} <= set(NODES)
    assert {tuple(found) for _, *found in lines} == {("bubblewrap", "1.0")}
