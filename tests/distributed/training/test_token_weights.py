"""The same rollouts get the same token weights in every layout, those of `transformers`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from ranks import run_ranks
from tiny_rollouts import LONGEST, THINK_MARKERS, rollouts
from transformers import AutoModelForCausalLM

from megatron_resrl.data.think import think_mask
from megatron_resrl.rollout.batch import RolloutBatch
from megatron_resrl.subspace import token_weights

TOLERANCE = 1e-5
"""Asked for, of fp32 weights over layouts."""


CASES = {"default": 40, "slow": 54}
"""Layouts, methods and micro-batch sizes of each part."""


@pytest.fixture(scope="module", params=["default", pytest.param("slow", marks=pytest.mark.slow)])
def part(request: pytest.FixtureRequest) -> str:
    """Which layouts are run."""
    return request.param


@pytest.fixture(scope="module")
def weights(models: Path, part: str) -> dict[str, np.ndarray]:
    """Weights by "layout|method|micro-batch size", of 1, 2 and 4 ranks."""
    found: dict[str, np.ndarray] = {}
    for ranks in (1, 2, 4):
        output = models / f"{ranks}.npz"
        script = Path(__file__).with_name("ranks_token_weights.py")
        run_ranks(script, ranks, models, output, part)
        found |= dict(np.load(output))
    return found


def test_token_weights_agree_in_layouts_methods_micro_batches(
    weights: dict[str, np.ndarray], part: str
) -> None:
    worst = 0.0
    for name, found in weights.items():
        layout = name.split("|")[0]
        kind = [word for word in ("moe", "layer 1", "layer -1") if layout.endswith(word)]
        base = weights[f"one {kind[0]}|rows|3" if kind else "one|rows|4"]
        difference = float(np.abs(found - base).max())
        assert difference <= TOLERANCE, f"{name}: {difference:.1e}"
        worst = max(worst, difference)
    print(f"{len(weights)} cases, largest difference {worst:.1e}")
    assert len(weights) == CASES[part]


@pytest.mark.parametrize(
    ("name", "family", "layer"),
    [
        ("one|rows|4", "qwen3", -2),
        ("one layer 1|rows|3", "qwen3", 1),
        ("one layer -1|gram|3", "qwen3", -1),
        ("one moe|rows|3", "qwen3_moe", -2),
    ],
)
def test_token_weights_are_those_of_transformers_states(weights, models, name, family, layer):
    samples, positive = rollouts()
    model = AutoModelForCausalLM.from_pretrained(models / family, dtype=torch.float32)
    hidden = torch.zeros(len(samples), LONGEST, model.config.hidden_size)
    mask = torch.zeros(len(samples), LONGEST, dtype=torch.bool)
    for row, sample in enumerate(samples):
        tokens = torch.tensor([(*sample.prompt.token_ids, *sample.response.token_ids)])
        with torch.no_grad():
            states = model(tokens[:, :-1], output_hidden_states=True).hidden_states[layer]
        length = len(sample.response.token_ids)
        hidden[row, :length], mask[row, :length] = states[0, -length:], True
    batch = RolloutBatch.from_samples(samples)
    thought = think_mask(
        batch.token_ids, batch.prompt_lengths, batch.response_lengths, THINK_MARKERS, LONGEST
    )
    group = torch.tensor([sample.group for sample in samples])
    found = torch.from_numpy(weights[name])
    if family == "qwen3" and layer == -2:
        assert thought.any()
    want = token_weights(hidden, mask & ~thought, positive, group, rank=6)
    want[thought & ~positive.unsqueeze(1)] = 0
    # The first group's positives are sampled, with a key of the run: compare the others. States
    # differ by 3e-6; quantile spreads amplify that.
    others = mask & (group != 0).unsqueeze(1)
    torch.testing.assert_close(found[others], want[others], atol=1e-4, rtol=0)
    assert (found[thought & ~positive.unsqueeze(1)] == 0).all()
    assert found[~mask].eq(1).all()
