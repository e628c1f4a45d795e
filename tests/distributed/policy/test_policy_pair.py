"""Two ranks agree on gradients over a split vocabulary, on skipped steps and on errors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from ranks import run_ranks


@pytest.fixture(scope="module")
def found(folder: Path) -> dict[str, Any]:
    output = run_ranks(Path(__file__).with_name("ranks_pair.py"), 2, folder)
    return json.loads(output.splitlines()[-1])["found"]


@pytest.mark.parametrize("name", ["log_probs", "entropy", "hidden_gradient", "weight_gradient"])
def test_log_probs_of_a_split_vocabulary_equal_float64(found: dict, name: str) -> None:
    # fp32 rounding of logits up to 20.
    assert found["split_vocabulary"][name] < 2e-5


def test_log_probs_give_padding_rows_no_gradient(found: dict) -> None:
    assert found["split_vocabulary"]["padding_gradient"] == 0


def test_update_is_skipped_on_all_ranks_if_one_is_not_finite(found: dict) -> None:
    assert found["one_bad_gradient"] == {"skipped": True, "unchanged": True, "recovers": True}


@pytest.mark.parametrize("layout", ["broken_tp2", "broken_pp2"])
def test_load_names_a_missing_tensor_on_every_rank(found: dict, layout: str) -> None:
    assert len(found[layout]) == 2
    for message in found[layout]:
        assert "model.layers.0.mlp.up_proj.weight is missing" in message
        assert "broken_" in message


def test_policy_in_bf16_stays_near_the_fp32_reference(found: dict) -> None:
    # Eight bits of mantissa through four layers: 0.012 nats on average and 0.3 % measured.
    assert found["bf16"]["log_probs"] < 0.05
    assert found["bf16"]["grad_norm"] < 0.05
