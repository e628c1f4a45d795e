"""A run goes on where the layers and the optimizer are Transformer Engine's, and comes back."""

from __future__ import annotations

from pathlib import Path

import pytest
import tiny_checkpoint as tiny
import torch
from ranks import run_ranks
from te_on_cpu.suite import HERE, needs_engine, run_on_engine_layers

pytestmark = needs_engine
SCRIPT = HERE / "ranks_resume.py"
STEP = 1e-5
"""Of weights, as between layouts; a wrong count of steps moves them by 5e-3."""
CASES = ("distributed", "plain", "experts", "experts_plain", "gemma")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    models = tiny.write_models(tmp_path_factory.mktemp("models"))
    folder = tmp_path_factory.mktemp("runs")
    run_ranks(SCRIPT, 1, models, folder, "nothing", "local", 2, 2)
    run_on_engine_layers(SCRIPT, models, folder, "local", "engine", 1, 1, timeout=600)
    run_ranks(SCRIPT, 1, models, folder, "engine", "back", 0, 1)
    run_on_engine_layers(SCRIPT, models, folder, "nothing", "unmoved", 0, 1, timeout=600)
    run_ranks(SCRIPT, 1, models, folder, "unmoved", "first", 1, 0)
    return folder


def distance(first: Path, second: Path) -> float:
    """Largest between two runs' weights."""
    own, other = torch.load(first), torch.load(second)
    assert own.keys() == other.keys()
    return max(float((own[name] - other[name]).abs().max()) for name in own)


@pytest.mark.parametrize("case", CASES)
def test_resume_between_kinds_of_layers_takes_the_same_steps(runs: Path, case: str) -> None:
    folder = runs / case
    assert distance(folder / "local_3.pt", folder / "local_2.pt") > 100 * STEP
    assert distance(folder / "engine_3.pt", folder / "local_3.pt") < STEP
    assert distance(folder / "engine_4.pt", folder / "local_4.pt") < STEP
    assert distance(folder / "back_4.pt", folder / "local_4.pt") < STEP


@pytest.mark.parametrize("case", CASES)
def test_resume_from_before_the_first_step_has_no_steps(runs: Path, case: str) -> None:
    folder = runs / case
    assert distance(folder / "first_1.pt", folder / "local_1.pt") < STEP
