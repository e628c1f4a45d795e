"""What machine this is, and that the product's own check and doctor can be run on it."""

from __future__ import annotations

import json
import platform
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version

import pytest
import torch
from gpu.measured import Measured
from tiny_task import write_task

pytestmark = pytest.mark.gpu

PACKAGES = ("torch", "megatron-core", "transformers", "transformer-engine", "mbridge", "triton")
QUERY = "name,driver_version,memory.total,compute_cap,clocks.max.sm,power.limit"


def test_machine_is_written_down(measured: Measured, cuda: bool) -> None:
    measured.note("python", platform.python_version())
    for package in PACKAGES:
        try:
            measured.note(package, version(package))
        except PackageNotFoundError:
            measured.note(package, "absent")
    measured.note("cuda", torch.version.cuda or "absent")
    if not cuda:
        return
    measured.note("cudnn", torch.backends.cudnn.version())
    measured.note("nccl", ".".join(map(str, torch.cuda.nccl.version())))
    command = ["nvidia-smi", f"--query-gpu={QUERY}", "--format=csv,noheader"]
    measured.note("gpu", subprocess.run(command, capture_output=True, text=True).stdout.strip())
    free, total = torch.cuda.mem_get_info()
    measured.note("memory_gib", round(total / 2**30, 1))
    measured.note("free_memory_gib", round(free / 2**30, 1), "nothing else runs on it")


def test_check_accepts_a_recipe(tmp_path) -> None:
    command = [sys.executable, "-m", "megatron_resrl", "check", str(write_task(tmp_path))]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert "no problems found for 1 rank" in done.stdout


def test_doctor_reads_and_measures_the_machine(measured: Measured, cuda: bool, tmp_path) -> None:
    command = [sys.executable, "-m", "megatron_resrl", "doctor", "--quick", "--json"]
    command += ["--output_dir", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode in (0, 1), done.stderr
    said = json.loads(done.stdout)
    for finding in said["findings"]:
        where = f"{finding['where']}: " if finding["where"] else ""
        measured.note(f"doctor, {finding['rule']}", f"{where}{finding['problem']}")
    (host,), (product,) = said["hosts"].values(), said["matrix_products"]
    assert host["software"]["torch"]["version"] == torch.__version__
    assert product["flops"] > 0
    measured.note("doctor, matrix product in TFLOP/s", round(product["flops"] / 1e12, 3))
    if cuda:
        assert product["device"] == torch.cuda.get_device_name()
        assert host["gpus"]["failure"] is None
        assert product["device"] in [gpu["name"] for gpu in host["gpus"]["gpus"]]
        assert all(gpu["memory"] > 0 for gpu in host["gpus"]["gpus"])
