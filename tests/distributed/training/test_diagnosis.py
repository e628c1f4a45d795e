"""What is measured of a step equals `transformers` and autograd, in every layout."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from one_step import training_batch
from ranks import run_ranks
from tiny_rollouts import rollouts
from transformers import AutoModelForCausalLM, PreTrainedModel

from megatron_resrl.diagnostics.interference import sample_tokens

COMPARED = (
    "lld/log_likelihood_change",
    "lld/log_prob_change",
    "lld/displaced_fraction",
    "interference/representation",
    "interference/representation_weighted",
    "interference/representation_cosine",
    "interference/reduction_to_constant",
    "interference/gradient",
    "interference/gradient_signed_weighted",
    "resrl/mean_weight",
    "resrl/spectrum_effective_rank",
    "loss",
    "grad_norm",
    "entropy",
)


@pytest.fixture(scope="module")
def measured(models: Path) -> dict[tuple[str, str], dict[str, float]]:
    """Metrics by layout and refresh."""
    script = Path(__file__).with_name("ranks_diagnosis.py")
    lines = [
        json.loads(line)
        for ranks in (1, 2)
        for line in run_ranks(script, ranks, models).splitlines()
        if line.startswith('{"layout"')
    ]
    return {(line["layout"], line["refresh"]): line["metrics"] for line in lines}


@pytest.mark.parametrize("refresh", ["rollout", "minibatch"])
def test_diagnosis_is_the_same_in_every_layout(measured, refresh):
    base = measured["one", refresh]
    layouts = {layout for layout, _ in measured}
    assert layouts == {"one", "TP2+SP", "PP2", "CP2", "DP2"}
    for layout in layouts:
        for name in COMPARED:
            # fp32 sums in another order, one or two updates deep.
            found = measured[layout, refresh][name]
            assert found == pytest.approx(base[name], rel=2e-3, abs=1e-5), (layout, name)


def test_refresh_minibatch_changes_the_second_update(measured):
    kept, refreshed = measured["one", "rollout"], measured["one", "minibatch"]
    assert kept["update/applied"] == refreshed["update/applied"] == 2
    # Both updates' norms in one mean; the first is the same.
    assert kept["grad_norm"] != pytest.approx(refreshed["grad_norm"], rel=1e-3)
    # What is reported is what was used, and what it took: a second pass over half of the groups.
    assert kept["resrl/mean_weight"] != pytest.approx(refreshed["resrl/mean_weight"], rel=1e-3)
    assert kept["resrl/negative_mass"] != pytest.approx(refreshed["resrl/negative_mass"], rel=1e-3)
    assert kept["resrl/groups"] == refreshed["resrl/groups"] == 4
    sent = [measured["TP2+SP", refresh]["resrl/sent_bytes"] for refresh in ("rollout", "minibatch")]
    assert sent[0] < sent[1] < 2 * sent[0]


def log_likelihoods(model: PreTrainedModel) -> list[float]:
    """Of the correct responses."""
    samples, positive = rollouts()
    found = []
    for sample, correct in zip(samples, positive.tolist(), strict=True):
        if correct:
            prompt, response = sample.prompt.token_ids, sample.response.token_ids
            with torch.no_grad():
                logits = model(torch.tensor([prompt + response])).logits[0, len(prompt) - 1 : -1]
            picked = logits.log_softmax(-1).gather(1, torch.tensor(response)[:, None])
            found.append(float(picked.sum()))
    return found


def test_displaced_likelihood_is_that_of_transformers(measured, models):
    before, after = (
        log_likelihoods(AutoModelForCausalLM.from_pretrained(models / name, dtype=torch.float32))
        for name in ("qwen3", "after")
    )
    changes = [new - old for new, old in zip(after, before, strict=True)]
    metrics = measured["one", "rollout"]
    mean = sum(changes) / len(changes)
    # fp32 log-probs of 50 tokens.
    assert metrics["lld/log_likelihood_change"] == pytest.approx(mean, abs=2e-4)
    fallen = sum(change < 0 for change in changes) / len(changes)
    assert metrics["lld/displaced_fraction"] == fallen


@pytest.mark.setting("resrl.diagnose_every", "resrl.interference_tokens", "resrl.logit_factor")
def test_interference_is_the_product_of_head_gradients(measured, models):
    """autograd through transformers' output layer, token by token."""
    samples, positive = rollouts()
    model = AutoModelForCausalLM.from_pretrained(models / "qwen3", dtype=torch.float64)
    model.requires_grad_(False)
    model.lm_head.weight.requires_grad_(True)

    def gradient(index: int, position: int) -> torch.Tensor:
        prompt, response = samples[index].prompt.token_ids, samples[index].response.token_ids
        logits = model(torch.tensor([prompt + response])).logits[0, len(prompt) - 1 + position]
        loss = -logits.log_softmax(-1)[response[position]]
        return torch.autograd.grad(loss, model.lm_head.weight)[0].flatten()

    batch = training_batch(samples, positive)
    means = []
    for positives, negatives in sample_tokens(batch, 7, seed=5, step=1):
        right, wrong = (
            torch.stack([gradient(*token) for token in side]) for side in (positives, negatives)
        )
        means.append((right @ wrong.T).abs().mean())
    assert len(means) == 3  # the groups with right and wrong answers
    expected = float(torch.stack(means).mean())
    assert measured["one", "rollout"]["interference/gradient"] == pytest.approx(expected, rel=1e-4)
