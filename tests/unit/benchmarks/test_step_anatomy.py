"""What the anatomy of a step counts, and how it reports it."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention
from torch.utils.flop_counter import FlopCounterMode

BENCHMARKS = Path(__file__).resolve().parents[3] / "benchmarks"


@pytest.fixture
def anatomy(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("step_anatomy")


def test_operations_of_attention_are_those_of_its_products(anatomy):
    formulas = sys.modules["anatomy_work"].FORMULAS
    query, key, value = (torch.randn(2, 3, 10, 8, requires_grad=True) for _ in range(3))
    product = 2 * 2 * 3 * 10 * 10 * 8
    with FlopCounterMode(display=False, custom_mapping=formulas) as counter:
        out = scaled_dot_product_attention(query, key, value)
        assert counter.get_total_flops() == 2 * product
        out.sum().backward()
        assert counter.get_total_flops() == 2 * product + 5 * product
    with FlopCounterMode(display=False, custom_mapping=formulas) as counter:
        scaled_dot_product_attention(query, key, value, is_causal=True)
    assert counter.get_total_flops() == product


def test_cases_switch_features_on_one_by_one(anatomy):
    found = anatomy.cases(row_tokens=100)
    names = list(found)
    assert (names[0], names[-1]) == ("nothing", "everything")
    assert found["nothing"]["single_pass"] == "never"
    assert found["single pass"]["single_pass"] == "always"
    assert found["token budget"]["single_pass"] == "never"
    assert found["everything"] == {**found["nothing"], **found["token budget"], **_on(found)}


def _on(found: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """What single features change."""
    off = found["nothing"].items()
    return {
        name: value
        for case, settings in found.items()
        if case != "everything"
        for name, value in settings.items()
        if (name, value) not in off
    }


def test_decoding_stands_beside_its_roofline(anatomy):
    # 32 operations per byte at 10 GB/s are 320 GFLOP/s, above the peak of 100; at 2 GB/s they are
    # 64. Products take half of the time of decoding.
    found = {
        "rows": 64,
        "seconds": 0.2,
        "operations": 6.4e9,
        "product_operations": 6.4e9,
        "weight_bytes": 2e8,
        "product_seconds": 0.1,
        "peak": 1e11,
        "memory": 1e10,
    }
    lines = anatomy.decoding_lines(found)
    assert lines[0] == "Decoding 64 rows, per token of each: 200.0 ms, 320 tokens/s."
    assert lines[-3].endswith("| 100 | 100% |")
    assert lines[-2] == "| the step's products alone, 100.0 ms | 64 | 64% |"
    assert lines[-1] == "| decoding, 50% of the products alone | 32 | 32% |"
    slow_memory = anatomy.decoding_lines(found | {"memory": 2e9})
    assert slow_memory[-3].endswith("| 64 | 64% |")
