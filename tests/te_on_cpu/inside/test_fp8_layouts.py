"""FP8 in layouts of several ranks: by every recipe near fp32, and in the layers it is asked for."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from ranks import run_ranks
from tiny_scoring import SEQUENCES, write_llama
from transformers import AutoModelForCausalLM

SCRIPT = Path(__file__).with_name("ranks_fp8.py")
LAYOUTS = ("tp", "pp", *(pytest.param(name, marks=pytest.mark.slow) for name in ("cp", "vpp")))
RECIPES = ("delayed", "tensorwise", "blockwise", "mxfp8")
NEAR = 0.15
"""Largest distance of log-probabilities from fp32; 0.1 measured."""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four layers, whose matrices two ranks can share by every recipe."""
    return write_llama(tmp_path_factory.mktemp("model"), hidden_size=128, layers=4)


@pytest.fixture(scope="module")
def found(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], list[dict]]:
    """found(layout) -> what each of the two ranks found."""
    folder = tmp_path_factory.mktemp("ranks")

    @functools.cache
    def of(layout: str) -> list[dict]:
        run_ranks(SCRIPT, 2, model, folder, layout)
        return [torch.load(folder / f"{layout}_{rank}.pt") for rank in range(2)]

    return of


@pytest.fixture(scope="module")
def exact(model: Path) -> dict[tuple[int, int], float]:
    """Log-probabilities of transformers in fp32, by sequence and position."""
    network = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    wanted = {}
    for number, one in enumerate(SEQUENCES):
        tokens = torch.tensor([*one.prompt, *one.response])
        with torch.no_grad():
            log_probs = network(tokens[None]).logits[0].log_softmax(-1)
        for position, token in enumerate(one.response):
            place = len(one.prompt) + position - 1
            wanted[number, position] = float(log_probs[place, token])
    return wanted


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_fp8_layouts_are_near_fp32(found, exact, layout: str, recipe: str) -> None:
    ranks = [each[recipe] for each in found(layout)]
    scored = {place: value for rank in ranks for place, value in rank["log_probs"].items()}
    assert scored.keys() == exact.keys()
    errors = torch.tensor([abs(scored[place] - exact[place]) for place in exact])
    assert errors.max() < NEAR
    assert errors.mean() > 0.003  # Rounding to FP8 is real.
    assert ranks[0]["grad_norm"] == pytest.approx(ranks[1]["grad_norm"])
    assert ranks[0]["grad_norm"] == pytest.approx(found("pp")[0][recipe]["grad_norm"], rel=0.03)


@pytest.mark.parametrize("case", ["tensorwise", "ends", "ends_recomputed"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_fp8_layers_at_the_ends_stay_in_bf16(found, layout: str, case: str) -> None:
    in_fp8 = {}
    for rank in found(layout):
        in_fp8 |= rank[case]["in_fp8"]
    at_ends = {1: False, 2: True, 3: False, 4: False}
    assert in_fp8 == (dict.fromkeys(at_ends, True) if case == "tensorwise" else at_ends)
