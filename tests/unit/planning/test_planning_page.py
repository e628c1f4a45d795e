"""What docs/planning.md says in numbers is what the code has."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

from megatron_resrl.planning.command import by_formula
from megatron_resrl.planning.gpus import GPUS

ROOT = Path(__file__).resolve().parents[3]
PAGE = (ROOT / "docs" / "planning.md").read_text()


@pytest.fixture
def published(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The benchmark that compares with published steps."""
    return benchmark("published_steps", monkeypatch)


def benchmark(name: str, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, ROOT / "benchmarks" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)  # Its dataclasses look there.
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", GPUS)
def test_page_has_the_rates_of_every_gpu(name: str) -> None:
    gpu = GPUS[name]
    row = (
        f"| {name} | {gpu.memory / 2**30:.1f} | {gpu.matrix_flops['bfloat16'] / 1e12:.0f} | "
        f"{gpu.best_matrix.get('bfloat16', 0.8):.3f} | {gpu.memory_bandwidth / 1e12:.3f} | "
        f"{gpu.nvlink / 1e9:g} | {gpu.network / 1e9:g} |"
    )
    assert row in PAGE.splitlines()


def test_page_compares_with_published_steps(published: ModuleType) -> None:
    lines = list(published.table(by_formula))
    assert set(lines) <= set(PAGE.splitlines())


def test_forecast_is_near_what_was_published(published: ModuleType) -> None:
    """The deviations that the page explains; a change of a rate that worsens them shows here."""
    allowed = {
        "Llama 3.1 8B, 8 H100": {"training": 0.15, "log-probs": 0.15, "generation": 0.45},
        "Llama 3.1 70B, 64 H100": {"training": 0.17, "log-probs": 0.30, "step": 0.15},
    }
    for step in published.STEPS:
        found = published.seconds_of(published.planned(step, by_formula))
        for phase, limit in allowed[step.name].items():
            assert found[phase] == pytest.approx(step.published[phase], rel=limit), phase


def test_page_compares_with_published_training(monkeypatch: pytest.MonkeyPatch) -> None:
    training = benchmark("published_training", monkeypatch)
    assert set(training.table()) <= set(PAGE.splitlines())
    # The deviations that the page explains.
    for job, limit in zip(training.JOBS, (0.15, 0.20, 0.20, 0.26), strict=True):
        assert training.tokens_per_gpu(job) == pytest.approx(job.published, rel=limit), job.name
