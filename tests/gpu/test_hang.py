"""A rank that waits for a kernel without end is named, with its phase and step, and ends."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytestmark = pytest.mark.gpu


def test_stuck_kernel_is_named() -> None:
    command = [sys.executable, str(Path(__file__).with_name("stuck_kernel.py"))]
    done = subprocess.run(command, capture_output=True, text=True, timeout=55, check=False)
    assert done.returncode == 2, done.stderr
    gpu = ", GPU 0" if torch.cuda.is_available() else ""
    assert "phase 'update', rank 0 (host " in done.stderr
    assert f"local rank 0{gpu}), step 7: this rank has waited for another rank" in done.stderr
    assert "rank 1 did not answer: never seen" in done.stderr
