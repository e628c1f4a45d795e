"""Pretraining is the same in every layout: fresh weights bit for bit, the curve of the loss."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tiny_families as tiny
from ranks import run_ranks
from tiny_corpus import write_tokens

Case = tuple[str, bool]
STEPS, ALL_STEPS = 6, 50
LAYOUTS = 8
METRICS = ("loss", "grad_norm", "z_loss", "moe_aux_loss")


def _measure(directory: Path, steps: int) -> dict[str, dict[Case, dict[str, Any]]]:
    """Digests and metrics by layout and (model, document mask)."""
    tiny.write_families(directory, ["llama", "qwen3_moe"])
    prefix = write_tokens(directory)
    found: dict[str, dict[Case, dict[str, Any]]] = {}
    for ranks in (1, 2):
        script = Path(__file__).with_name("ranks_pretrain.py")
        printed = run_ranks(script, ranks, directory, prefix, steps)
        for line in printed.splitlines():
            if line.startswith('{"layout"'):
                case = json.loads(line)
                key = (case["model"], case["document_mask"])
                found.setdefault(case["layout"], {})[key] = case
    assert len(found) == LAYOUTS
    return found


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[Case, dict[str, Any]]]:
    return _measure(tmp_path_factory.mktemp("layouts"), STEPS)


def _compare(measured: dict[str, dict[Case, dict[str, Any]]], steps: int) -> None:
    for layout, cases in measured.items():
        for case, found in cases.items():
            expected = measured["one"][case]
            assert len(found["steps"]) == steps
            for number, (step, want) in enumerate(
                zip(found["steps"], expected["steps"], strict=True), 1
            ):
                assert step.keys() == want.keys()
                for metric in METRICS:
                    if metric in want:
                        assert step[metric] == pytest.approx(want[metric], rel=1e-5), (
                            f"{layout} {case}, step {number}: {metric}"
                        )


def test_fresh_weights_are_the_same_bits_in_every_layout(measured):
    for layout, cases in measured.items():
        for case, found in cases.items():
            assert found["weights"] == measured["one"][case]["weights"], (layout, case)


def test_pretrain_loss_is_the_same_in_every_layout(measured):
    _compare(measured, STEPS)
    losses = [step["loss"] for step in measured["one"]["llama", False]["steps"]]
    assert losses[-1] < losses[0] - 0.1
    balancing = [step["moe_aux_loss"] for step in measured["one"]["qwen3_moe", False]["steps"]]
    assert all(1 < loss < 2 for loss in balancing)


@pytest.mark.slow
def test_pretrain_loss_curve_is_the_same_in_every_layout(tmp_path):
    _compare(_measure(tmp_path, ALL_STEPS), ALL_STEPS)
