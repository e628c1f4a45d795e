"""Dry runs of token weightings that compare the responses of a whole group."""

from __future__ import annotations

from pathlib import Path

import pytest
from dry_runs import phases_of, write_config

GRPO = "algorithm.name=grpo"
TOKENS, HIDDEN, VOCABULARY = 40, 128, 1024
"""Of a response; of the model."""
GROUPS, SIDE = 2, 2
"""Of the step; correct responses of a group, which has as many incorrect ones."""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_config(tmp_path_factory.mktemp("dense"))


@pytest.mark.parametrize("name", ["nthr", pytest.param("thr", marks=pytest.mark.slow)])
def test_dry_run_counts_the_logits_of_hidden_rewards(model: Path, name: str) -> None:
    without, found = phases_of(model, GRPO), phases_of(model, GRPO, f"algorithm.weighting={name}")
    # Logits of a response, and those of the four ids that a group's responses have: of the correct
    # ones for their gradient, twice for their means, and of all at the end.
    logits = 2 * TOKENS * HIDDEN * (VOCABULARY + 4)
    times = SIDE + 2 * SIDE + 2 * SIDE
    assert found["subspace"].matrix_flops["bfloat16"] == GROUPS * times * logits
    for phase in ("scoring", "update"):
        assert found[phase].matrix_flops == without[phase].matrix_flops


@pytest.mark.slow
def test_dry_run_counts_the_distances_of_shear(model: Path) -> None:
    without, found = phases_of(model, GRPO), phases_of(model, GRPO, "algorithm.weighting=shear")
    # Inner products of the states of correct responses with those of incorrect ones.
    products = 2 * TOKENS * TOKENS * HIDDEN
    assert found["subspace"].matrix_flops == {"float64": GROUPS * SIDE * SIDE * products}
    for phase in ("scoring", "update"):
        assert found[phase].matrix_flops == without[phase].matrix_flops
