"""Any entry of Hugging Face's `hidden_states` can be tapped, whichever stage holds it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from ranks import run_ranks

STAGES = {
    "pp1": [0, 0, 0, 0, 0],
    "pp1_packed": [0, 0, 0, 0, 0],
    "pp2_three_and_one": [0, 0, 0, 1, 1],
    "pp2_one_and_three": [0, 1, 1, 1, 1],
    "pp2_four_and_none": [0, 0, 0, 0, 1],
    "pp2_vpp2": [0, 1, 0, 1, 1],
    "tp2_sp": [0, 0, 0, 0, 0],
    "cp2": [0, 0, 0, 0, 0],
}
"""Pipeline rank that holds the input of each of four layers, and what the final norm makes."""


@pytest.fixture(scope="module")
def tapped(folder: Path) -> dict[str, dict[str, Any]]:
    script = Path(__file__).with_name("ranks_tap.py")
    output = "".join(run_ranks(script, size, folder) for size in (1, 2))
    lines = [json.loads(line) for line in output.splitlines() if line.startswith('{"layout"')]
    return {line["layout"]: line for line in lines}


def test_tap_equals_transformers_at_every_layer_and_layout(tapped: dict) -> None:
    assert set(tapped) == set(STAGES)
    for name, line in tapped.items():
        assert set(line["found"]) == {*"01234", "-1", "-2", "-5"}
        # fp32 sums in another order; 2e-6 measured on states of size 1 to 10.
        wrong = {layer: value for layer, value in line["found"].items() if not value <= 2e-5}
        assert not wrong, name


def test_tap_knows_the_stage_of_a_layer_on_every_rank(tapped: dict) -> None:
    assert {name: line["stages"] for name, line in tapped.items()} == STAGES


def test_tap_names_the_setting_of_a_missing_layer(tapped: dict) -> None:
    for line in tapped.values():
        assert "resrl.layer is 5" in line["refusal"]
        assert "-5 to 4" in line["refusal"]
