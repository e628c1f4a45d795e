"""Tokens that the policy did not draw are fed, and are no part of anything else, in any layout.

So it is with a correction of the distribution that the others were drawn from.
"""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import tiny_families as tiny
import torch
from one_step import OF_THE_LAYOUT
from ranks import run_ranks
from tiny_rollouts import CAP, rollouts, with_engine_log_probs

from megatron_resrl.algorithms import get_algorithm
from megatron_resrl.rollout.batch import RolloutBatch
from megatron_resrl.subspace import token_weights

LAYOUTS = 8
ROUNDING = 1e-4
"""fp32 sums in another order, amplified by quantile spreads."""
Key = tuple[str, str, str]


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights after one step, by "algorithm kind"."""
    return tmp_path_factory.mktemp("output")


@pytest.fixture(scope="module")
def measured(models: Path, output: Path) -> dict[Key, dict[str, float]]:
    """Metrics by (layout, algorithm, kind of mask), of 1 and 2 ranks."""
    found: dict[Key, dict[str, float]] = {}
    for ranks in (1, 2):
        script = Path(__file__).with_name("ranks_response_mask.py")
        printed = run_ranks(script, ranks, models, output)
        for line in printed.splitlines():
            if line.startswith('{"layout"'):
                case = json.loads(line)
                found[case["layout"], case["algorithm"], case["kind"]] = case["metrics"]
    assert len({layout for layout, _, _ in found}) == LAYOUTS
    return found


@pytest.mark.parametrize("kind", ["masked", "corrected"])
@pytest.mark.parametrize("algorithm", ["grpo", "resrl"])
def test_loss_mask_gives_the_same_step_in_every_layout(
    measured: dict[Key, dict[str, float]], algorithm: str, kind: str
) -> None:
    base = measured["one", algorithm, kind]
    for (layout, *case), metrics in measured.items():
        if case != [algorithm, kind]:
            continue
        for metric, value in base.items():
            if metric not in OF_THE_LAYOUT:
                same = math.isclose(metrics[metric], value, rel_tol=ROUNDING, abs_tol=ROUNDING)
                assert same, f"{layout}: {metric} is {metrics[metric]}, not {value}"


@pytest.mark.parametrize("algorithm", ["grpo", "resrl"])
def test_loss_mask_of_all_tokens_gives_the_bits_without_one(
    measured: dict[Key, dict[str, float]], output: Path, algorithm: str
) -> None:
    assert measured["one", algorithm, "all true"] == measured["one", algorithm, "none"]
    without, all_true = (
        torch.load(output / f"{algorithm} {kind}.pt") for kind in ("none", "all true")
    )
    assert all(torch.equal(without[name], all_true[name]) for name in without)


@pytest.mark.parametrize("kind", ["masked", "corrected"])
def test_loss_mask_step_is_that_of_transformers(
    measured: dict[Key, dict[str, float]], models: Path, output: Path, kind: str
) -> None:
    samples = with_engine_log_probs(rollouts(masked=True)[0])
    rewards = torch.tensor([sample.reward for sample in samples], dtype=torch.float64)
    group = torch.tensor([sample.group for sample in samples])
    advantages = get_algorithm("grpo").sample_advantages(rewards, rewards, group)
    model = tiny.read_model(models / "qwen3")
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=1e-2, betas=(0.9, 0.999), eps=1e-3, weight_decay=0.0
    )
    loss, entropy, factors = torch.zeros(()), 0.0, []
    for sample, advantage in zip(samples, advantages.tolist(), strict=True):
        prompt, response = sample.prompt.token_ids, sample.response.token_ids
        logits = model(torch.tensor([prompt + response])).logits[0, len(prompt) - 1 : -1]
        log_probs = logits.log_softmax(-1)
        drawn = torch.tensor(sample.response.response_mask)
        taken = log_probs.gather(1, torch.tensor(response)[:, None])[:, 0][drawn]
        factor = torch.ones_like(taken)
        if kind == "corrected":
            engine = torch.tensor(sample.response.log_probs)[drawn]
            factor = (taken.detach() - engine).exp().clamp(max=CAP)
        loss = loss - advantage * (factor * taken).sum() / (len(taken) * len(samples))
        entropy -= float((log_probs.exp() * log_probs).sum(-1)[drawn].sum().detach())
        factors.append(factor)
    loss.backward()
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    metrics, factor = measured["one", "grpo", kind], torch.cat(factors)
    assert metrics["grad_norm"] == pytest.approx(float(norm), rel=1e-5)
    assert metrics["entropy"] == pytest.approx(entropy / len(factor), rel=1e-5)
    if kind == "corrected":
        assert metrics["correction/factor_mean"] == pytest.approx(float(factor.mean()), rel=1e-5)
        assert metrics["correction/clipped"] == pytest.approx(float((factor == CAP).float().mean()))
        assert 0.1 < metrics["correction/clipped"] < 0.9
    after = torch.load(output / f"grpo {kind}.pt")
    named = dict(model.named_parameters())
    # One step of Adam of 1e-2; fp32 noise of gradients is divided by at least 1e-3.
    worst = max(float((after[name] - named[name].detach()).abs().max()) for name in named)
    assert worst <= 1e-5, worst


def test_loss_mask_lengths_count_generated_tokens(measured: dict[Key, dict[str, float]]) -> None:
    samples, _ = rollouts(masked=True)
    drawn = [sum(sample.response.response_mask) for sample in samples]
    found = measured["one", "resrl", "masked"]
    assert found["response/length_mean"] == pytest.approx(sum(drawn) / len(drawn))


def test_loss_mask_keeps_other_tokens_out_of_the_subspace(
    measured: dict[Key, dict[str, float]], models: Path, output: Path
) -> None:
    samples, positive = rollouts(masked=True)
    mask = RolloutBatch.from_samples(samples).loss_mask
    model = tiny.read_model(models / "qwen3")
    hidden = torch.zeros(*mask.shape, model.config.hidden_size)
    for row, sample in enumerate(samples):
        tokens = torch.tensor([(*sample.prompt.token_ids, *sample.response.token_ids)])
        with torch.no_grad():
            states = model(tokens[:, :-1], output_hidden_states=True).hidden_states[-2]
        length = len(sample.response.token_ids)
        hidden[row, :length] = states[0, -length:]
    group = torch.tensor([sample.group for sample in samples])
    weights, counts = torch.load(output / "weighed.pt")
    # States differ by 3e-6; quantile spreads amplify that.
    want = token_weights(hidden, mask, positive, group, rank=6)
    torch.testing.assert_close(weights, want, atol=1e-4, rtol=0)
    assert weights[~mask].eq(1).all()
    drawn = mask.sum(1)
    assert counts == [
        tuple(int(drawn[(group == number) & (positive == sign)].sum()) for sign in (True, False))
        for number in range(4)
    ]
