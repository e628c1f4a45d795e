"""The clipped objective, token by token."""

from __future__ import annotations

import math

import pytest
import torch

from megatron_resrl.algorithms import PolicyLoss, ppo_clip

ROUNDING = 1e-14
"""float64, values of size at most 20: a few operations of 2e-16 each."""

RATIOS = (0.3, 0.7999, 0.8001, 1.0, 1.19, 1.2799, 1.2801, 2.9999, 3.0001, 9.0)
ADVANTAGES = (-2.0, -0.5, 0.0, 0.7, 1.5)


def grid() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Every ratio with every advantage: log-probs (leaf), old log-probs, advantages; flat."""
    ratio, advantage = torch.meshgrid(
        torch.tensor(RATIOS, dtype=torch.float64),
        torch.tensor(ADVANTAGES, dtype=torch.float64),
        indexing="ij",
    )
    old = torch.linspace(-6, -3, ratio.numel(), dtype=torch.float64)
    log_probs = (old + ratio.flatten().log()).requires_grad_()
    return log_probs, old, advantage.flatten()


def gradient(loss: PolicyLoss, log_probs: torch.Tensor) -> torch.Tensor:
    return torch.autograd.grad(loss.per_token.sum(), log_probs)[0]


def test_ppo_clip_on_policy_clips_nothing() -> None:
    log_probs = torch.randn(50, generator=torch.Generator().manual_seed(1)) - 3
    log_probs.requires_grad_()
    advantages = torch.linspace(-2, 2, 50)
    loss = ppo_clip(log_probs, log_probs.detach(), advantages, dual_clip=3.0)
    assert torch.equal(loss.ratio, torch.ones(50))
    assert torch.equal(loss.approx_kl, torch.zeros(50))
    assert not (loss.clipped_low | loss.clipped_high | loss.dual_clipped).any()
    assert torch.equal(loss.per_token, -advantages)
    assert torch.equal(gradient(loss, log_probs), -advantages)


def test_ppo_clip_takes_old_log_probs_for_constants() -> None:
    log_probs = torch.tensor([-1.0, -2.0], requires_grad=True)
    loss = ppo_clip(log_probs, log_probs, torch.tensor([1.0, -1.0]))
    assert gradient(loss, log_probs).tolist() == [-1.0, 1.0]


def test_ppo_clip_has_value_and_gradient_of_the_definition() -> None:
    log_probs, old, advantages = grid()
    loss = ppo_clip(log_probs, old, advantages, clip_low=0.2, clip_high=0.28)
    slope = gradient(loss, log_probs).tolist()
    values = loss.per_token.tolist()
    log_ratios = (log_probs.detach() - old).tolist()
    for index, advantage in enumerate(advantages.tolist()):
        ratio = math.exp(log_ratios[index])
        clipped = min(max(ratio, 0.8), 1.28)
        objective = min(ratio * advantage, clipped * advantage)
        bound = objective != ratio * advantage
        assert values[index] == pytest.approx(-objective, rel=ROUNDING, abs=0)
        # d ratio / d log p = ratio
        expected = 0.0 if bound else -ratio * advantage
        assert slope[index] == pytest.approx(expected, rel=ROUNDING, abs=0)
        assert bool(loss.clipped_low[index] | loss.clipped_high[index]) == bound


def test_ppo_clip_counts_clips_only_where_they_bind() -> None:
    log_probs, old, advantages = grid()
    loss = ppo_clip(log_probs, old, advantages, clip_low=0.2, clip_high=0.28, dual_clip=3.0)
    ratio = (log_probs - old).detach().exp()
    assert torch.equal(loss.clipped_low, (ratio < 0.8) & (advantages < 0))
    assert torch.equal(loss.clipped_high, (ratio > 1.28) & (advantages > 0))
    assert torch.equal(loss.dual_clipped, (ratio > 3.0) & (advantages < 0))


def test_ppo_clip_dual_equals_the_formula_of_verl() -> None:
    """verl, `compute_policy_loss_vanilla`: for A < 0 the clipped loss is capped at -c A.

    verl also limits the log-ratio to +-20 first, which these ratios never reach.
    """
    log_probs, old, advantages = grid()
    loss = ppo_clip(log_probs, old, advantages, clip_low=0.2, clip_high=0.28, dual_clip=3.0)

    ratio = (log_probs - old).exp()
    plain, clipped = -advantages * ratio, -advantages * ratio.clamp(0.8, 1.28)
    pessimistic = torch.maximum(plain, clipped)
    capped = torch.minimum(pessimistic, -3.0 * advantages)
    expected = torch.where(advantages < 0, capped, pessimistic)

    torch.testing.assert_close(loss.per_token, expected, rtol=ROUNDING, atol=0)
    slope = torch.autograd.grad(expected.sum(), log_probs)[0]
    torch.testing.assert_close(gradient(loss, log_probs), slope, rtol=ROUNDING, atol=0)
    assert torch.equal(loss.clipped_low | loss.clipped_high, clipped > plain)
    capped_tokens = (pessimistic > -3.0 * advantages) & (advantages < 0)
    assert torch.equal(loss.dual_clipped, capped_tokens)
    assert capped_tokens.any()


def test_ppo_clip_without_dual_clip_pushes_any_negative_token() -> None:
    log_probs = torch.tensor([math.log(9.0)], requires_grad=True)
    loss = ppo_clip(log_probs, torch.zeros(1), torch.tensor([-1.0]))
    assert loss.per_token.item() == pytest.approx(9, rel=1e-6)  # fp32
    assert gradient(loss, log_probs).item() == pytest.approx(9, rel=1e-6)
    assert not loss.dual_clipped.any()


def test_ppo_clip_approx_kl_is_the_k3_estimator() -> None:
    logits = torch.randn(2, 7, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    old, new = torch.log_softmax(logits, -1)
    loss = ppo_clip(new, old, torch.ones(7))
    torch.testing.assert_close(loss.approx_kl, (new - old).exp() - 1 - (new - old))
    expectation = (old.exp() * loss.approx_kl).sum()
    kl = (old.exp() * (old - new)).sum()
    assert float(expectation) == pytest.approx(float(kl), rel=1e-12)  # a sum of 7 in float64
    assert (loss.approx_kl >= 0).all()


def test_ppo_clip_diagnostics_carry_no_graph() -> None:
    for shape in [(), (0,), (3,), (2, 3), (2, 1, 3)]:
        log_probs = torch.zeros(shape, requires_grad=True)
        loss = ppo_clip(log_probs, torch.zeros(shape), torch.ones(shape), dual_clip=3.0)
        assert loss.per_token.requires_grad
        assert all(value.shape == shape for value in vars(loss).values())
        assert not any(
            value.requires_grad for name, value in vars(loss).items() if name != "per_token"
        )
        bools = (loss.clipped_low, loss.clipped_high, loss.dual_clipped)
        assert all(value.dtype == torch.bool for value in bools)


@pytest.mark.parametrize("advantage", [0.0, 1.0])
def test_ppo_clip_has_no_nan_where_a_ratio_overflows(advantage) -> None:
    log_probs = torch.tensor([0.0], requires_grad=True)
    loss = ppo_clip(log_probs, torch.tensor([-200.0]), torch.tensor([advantage]))
    assert loss.ratio.isinf().all()  # exp(200) in fp32
    assert loss.per_token.item() == pytest.approx(-1.2 * advantage, rel=1e-6)  # fp32
    assert gradient(loss, log_probs).tolist() == [0.0]


@pytest.mark.parametrize("advantage", [-1.0, 0.0, 1.0])
def test_ppo_clip_keeps_what_is_not_a_number(advantage) -> None:
    log_probs = torch.tensor([float("nan")])
    assert ppo_clip(log_probs, torch.zeros(1), torch.tensor([advantage])).per_token.isnan().all()


def test_ppo_clip_keeps_the_precision_of_the_log_probs() -> None:
    advantages = torch.tensor([0.1, -0.1], dtype=torch.float64)
    loss = ppo_clip(torch.zeros(2), torch.zeros(2), advantages)
    assert loss.per_token.dtype == torch.float32


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("dual_clip", 1.0),
        ("dual_clip", 0.5),
        ("dual_clip", float("nan")),
        ("clip_low", 1.0),
        ("clip_low", 0.0),
        ("clip_high", 0.0),
    ],
)
def test_ppo_clip_names_clips_out_of_range(setting, value) -> None:
    with pytest.raises(ValueError, match=f"{setting} is {value}"):
        ppo_clip(torch.zeros(2), torch.zeros(2), torch.ones(2), **{setting: value})


def test_ppo_clip_refuses_tensors_that_would_broadcast() -> None:
    with pytest.raises(ValueError, match=r"\[2, 3\].*\[2, 3\].*\[2, 1\]"):
        ppo_clip(torch.zeros(2, 3), torch.zeros(2, 3), torch.ones(2, 1))
