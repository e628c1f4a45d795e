"""A masked response teaches nothing, counts in no denominator and is neither right nor wrong."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import tiny_families as tiny
import torch
from one_step import OF_THE_LAYOUT
from ranks import run_ranks
from tiny_rollouts import rollouts

from megatron_resrl.algorithms import get_algorithm
from megatron_resrl.rollout.batch import RolloutBatch
from megatron_resrl.subspace import token_weights

MASKED = [0, 7, 13]
ROUNDING = 1e-4
"""fp32 sums in another order, amplified by quantile spreads; see test_response_mask.py."""


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Gets the weights after the step, and the token weights."""
    return tmp_path_factory.mktemp("output")


@pytest.fixture(scope="module")
def measured(models: Path, output: Path) -> dict[tuple[str, str], dict[str, float]]:
    """Metrics by (layout, algorithm)."""
    found = {}
    for ranks in (1, 2):
        script = Path(__file__).with_name("ranks_overlong_mask.py")
        for line in run_ranks(script, ranks, models, output).splitlines():
            if line.startswith('{"layout"'):
                case = json.loads(line)
                found[case["layout"], case["algorithm"]] = case["metrics"]
    assert len(found) == 6
    return found


def test_overlong_mask_gives_the_same_step_in_every_layout(measured):
    for (layout, algorithm), metrics in measured.items():
        for name, value in measured["one", algorithm].items():
            if name not in OF_THE_LAYOUT:
                same = math.isclose(metrics[name], value, rel_tol=ROUNDING, abs_tol=ROUNDING)
                assert same, f"{layout} {algorithm}: {name} is {metrics[name]}, not {value}"


def test_overlong_mask_step_is_that_of_transformers(measured, models, output):
    samples, _ = rollouts()
    rewards = torch.tensor([sample.reward for sample in samples], dtype=torch.float64)
    group = torch.tensor([sample.group for sample in samples])
    advantages = get_algorithm("grpo").sample_advantages(rewards, rewards, group).tolist()
    model = tiny.read_model(models / "qwen3")
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=1e-2, betas=(0.9, 0.999), eps=1e-3, weight_decay=0.0
    )
    loss = torch.zeros(())
    for place, sample in enumerate(samples):
        if place in MASKED:
            continue
        prompt, response = sample.prompt.token_ids, sample.response.token_ids
        logits = model(torch.tensor([prompt + response])).logits[0, len(prompt) - 1 : -1]
        taken = logits.log_softmax(-1).gather(1, torch.tensor(response)[:, None])
        loss = loss - advantages[place] * taken.mean() / (len(samples) - len(MASKED))
    loss.backward()
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    assert measured["one", "grpo"]["grad_norm"] == pytest.approx(float(norm), rel=1e-5)
    after = torch.load(output / "weights.pt")
    named = dict(model.named_parameters())
    # One step of Adam of 1e-2; fp32 noise of gradients is divided by at least 1e-3.
    assert max(float((after[name] - named[name]).abs().max()) for name in named) <= 1e-5


def test_overlong_mask_keeps_responses_out_of_the_subspace(measured, models, output):
    samples, positive = rollouts()
    mask = RolloutBatch.from_samples(samples).loss_mask
    mask[MASKED] = False
    model = tiny.read_model(models / "qwen3")
    hidden = torch.zeros(*mask.shape, model.config.hidden_size)
    for row, sample in enumerate(samples):
        tokens = torch.tensor([(*sample.prompt.token_ids, *sample.response.token_ids)])
        with torch.no_grad():
            states = model(tokens[:, :-1], output_hidden_states=True).hidden_states[-2]
        length = len(sample.response.token_ids)
        hidden[row, :length] = states[0, -length:]
    group = torch.tensor([sample.group for sample in samples])
    weights = torch.load(output / "weighed.pt")
    want = token_weights(hidden, mask, positive, group, rank=6)
    # States differ by 3e-6; quantile spreads amplify that.
    torch.testing.assert_close(weights, want, atol=1e-4, rtol=0)
    assert weights[MASKED].eq(1).all()
