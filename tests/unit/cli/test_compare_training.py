"""tools/compare_training.py: what it calls equal."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

TOOL = Path(__file__).resolve().parents[3] / "tools" / "compare_training.py"


@pytest.fixture(scope="module")
def tool():
    spec = importlib.util.spec_from_file_location("compare_training", TOOL)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def row(step: int, **values: float) -> dict[str, float]:
    return {"step": step, "loss": 0.5, "grad_norm": 1.25, "time/step": 3.0} | values


def test_differences_are_none_where_only_times_differ(tool) -> None:
    before = [row(1), row(2)]
    assert tool.differences(before, [row(1), row(2, **{"time/step": 4.0})]) == []


def test_differences_show_the_last_bit_of_a_loss(tool) -> None:
    after = row(2, loss=0.5000000000000001)
    assert tool.differences([row(1), row(2)], [row(1), after]) == [
        "step 2 loss: 0.5 -> 0.5000000000000001"
    ]


def test_differences_show_a_metric_that_one_run_lacks(tool) -> None:
    assert tool.differences([row(1, entropy=2.0)], [row(1)]) == ["step 1 entropy: 2.0 -> None"]


@pytest.mark.parametrize("after", [[], [row(1)]])
def test_differences_show_missing_steps(tool, after: list) -> None:
    found = tool.differences([row(1), row(2)], after)
    assert found == [f"2 steps before, {len(after)} after"]
    assert tool.differences([], []) == ["0 steps before, 0 after"]
