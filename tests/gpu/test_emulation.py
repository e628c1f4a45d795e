"""A GPU's numbers are those of Transformer Engine's Python with its compiled functions answered in
torch on a CPU: what tests prove there holds here."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

import pytest
import torch
from gpu.emulated import SETTINGS, numbers
from gpu.measured import Measured
from te_on_cpu.suite import run_on_engine_layers

pytestmark = pytest.mark.gpu

LARGEST = {"bf16": 0.03, "bf16_packed": 0.03, "tensorwise": 0.05, "delayed": 0.05}
"""Of log-probabilities: another order of sums; a value between two numbers of FP8 may go to the
other one."""
GRAD_NORM = 0.02


@pytest.fixture(scope="module")
def emulated(engine: bool, llama: Path, tmp_path_factory: pytest.TempPathFactory) -> dict:
    """The numbers by setting."""
    if not engine:
        pytest.skip("without Transformer Engine")
    found = importlib.util.find_spec("transformer_engine").submodule_search_locations
    folder = Path(os.environ.get("TE_ON_CPU") or Path(found[0]).parent)
    file = tmp_path_factory.mktemp("emulated") / "numbers.pt"
    script = Path(__file__).with_name("emulated.py")
    run_on_engine_layers(script, llama, file, timeout=150, folder=folder)
    return torch.load(file)


@pytest.mark.parametrize("precision", SETTINGS)
def test_numbers_equal_the_emulated(
    emulated: dict, llama: Path, measured: Measured, precision: str
) -> None:
    log_probs, grad_norm = numbers(llama, SETTINGS[precision])
    expected, expected_norm = emulated[precision]
    apart = (log_probs - expected).abs()
    measured.at_most("log_probs_max", float(apart.max()), LARGEST[precision])
    measured.note("log_probs_mean", float(apart.mean()))
    measured.at_most("grad_norm", abs(grad_norm / expected_norm - 1), GRAD_NORM)
