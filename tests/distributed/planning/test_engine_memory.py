"""On Transformer Engine's layers the device without numbers holds as many bytes as real ranks."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from te_on_cpu.suite import FOLDER, needs_engine, run_on_engine_layers

pytestmark = [pytest.mark.slow, needs_engine]

RANKS = {
    "dp2": 0,
    "tp2_sp": 0,
    "tp2_packed": 0,
    "dp2_recompute": 0,
    "pp2": 1,
    "dp2_fp8": 0,
    "tp2_sp_fp8": 0,
}
"""Layout -> the rank that is compared."""
# The device has a thread of its own for backward passes, and lets go of tensors at other moments.
TOLERANCE = {"pp2": 0.04, "dp2_recompute": 0.03}
SCRIPT = Path(__file__).with_name("ranks_engine_memory.py")


@pytest.fixture(scope="module")
def real(models: list[Path]) -> list[dict[str, dict[str, int]]]:
    """Layout -> phase -> bytes, of both ranks."""
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", 2)
    said = run_on_engine_layers(*launcher, SCRIPT, FOLDER, *models, "real", *RANKS, timeout=600)
    return [json.loads(line) for line in said.splitlines() if line.startswith("{")]


@pytest.mark.parametrize(("layout", "rank"), RANKS.items())
def test_fake_engine_holds_the_bytes_of_real_ranks(layout, rank, models, real):
    done = subprocess.run(
        [sys.executable, *map(str, (SCRIPT, FOLDER, *models, rank, layout))],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    fake = json.loads(done.stdout.splitlines()[-1])[layout]
    # The ranks print in any order.
    tolerance = TOLERANCE.get(layout, 0.01)
    assert any(fake == pytest.approx(each[layout], rel=tolerance) for each in real)
