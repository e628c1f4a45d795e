"""Tasks that srun starts without torchrun are the ranks of one run."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys

import pytest
from ranks import REPOSITORY
from tiny_recipe import write_model, write_recipe

pytestmark = pytest.mark.slow


def test_srun_makes_two_tasks_one_run(tmp_path) -> None:
    recipe = write_recipe(tmp_path, write_model(tmp_path / "model"))
    job = {"SLURM_NTASKS": "2", "SLURM_STEP_NUM_TASKS": "2", "SLURM_NODEID": "0"}
    job |= {"SLURM_JOB_ID": str(random.randrange(20000)), "OMP_NUM_THREADS": "1"}
    tasks = [
        subprocess.Popen(
            [sys.executable, "-m", "megatron_resrl", "train", str(recipe)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=os.environ | job | {"SLURM_PROCID": str(task), "SLURM_LOCALID": str(task)},
            cwd=REPOSITORY,
        )
        for task in range(2)
    ]
    said = [task.communicate(timeout=600)[0] for task in tasks]
    assert [task.returncode for task in tasks] == [0, 0], said
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [0, 1, 2]
    assert not list((tmp_path / "run").glob("metrics.*.jsonl"))
