"""Estimates of the KL divergence, and their gradients, against sums over a whole vocabulary."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from megatron_resrl.algorithms import KlPenalty, LossInputs, get_algorithm
from megatron_resrl.algorithms.kl_penalty import estimated_kl

EXACT = {"rtol": 1e-12, "atol": 1e-12}
"""float64, a few operations."""


def distributions() -> tuple[Tensor, Tensor]:
    """Logits [V] of a policy, differentiable, and log-probabilities [V] of a reference."""
    generator = torch.Generator().manual_seed(1)
    logits, reference = torch.randn(2, 9, generator=generator, dtype=torch.float64)
    return logits.requires_grad_(), reference.log_softmax(0)


def kl(first: Tensor, second: Tensor) -> Tensor:
    """KL divergence of two distributions, by its definition."""
    return (first.exp() * (first - second)).sum()


def gradient(value: Tensor, logits: Tensor) -> Tensor:
    return torch.autograd.grad(value, logits)[0]


@pytest.mark.parametrize("estimator", ["k1", "k3"])
def test_estimated_kl_has_the_divergence_as_its_mean(estimator):
    logits, reference = distributions()
    log_probs = logits.log_softmax(0)
    mean = (log_probs.exp() * estimated_kl(log_probs - reference, estimator)).sum()
    torch.testing.assert_close(mean, kl(log_probs, reference), **EXACT)


def test_estimated_kl_of_one_token_follows_its_formula():
    x = torch.tensor([-1.5, 0.0, 0.25, 2.0], dtype=torch.float64)
    torch.testing.assert_close(estimated_kl(x, "k1"), x)
    torch.testing.assert_close(estimated_kl(x, "k2"), 0.5 * x * x, **EXACT)
    torch.testing.assert_close(estimated_kl(x, "k3"), (-x).exp() - 1 + x, **EXACT)


@pytest.mark.parametrize("estimator", ["k1", "k2", "k3"])
def test_estimated_kl_has_the_mean_gradient_it_claims(estimator):
    logits, reference = distributions()
    log_probs = logits.log_softmax(0)
    # Tokens are drawn from the policy as it is: their probabilities are constants.
    drawn = log_probs.exp().detach()
    mean = gradient((drawn * estimated_kl(log_probs - reference, estimator)).sum(), logits)
    log_probs = logits.log_softmax(0)
    claimed = {
        "k1": torch.zeros_like(mean),
        "k2": gradient(kl(log_probs, reference), logits),
        "k3": gradient(kl(reference, logits.log_softmax(0)), logits),
    }[estimator]
    torch.testing.assert_close(mean, claimed, **EXACT)


def inputs(log_probs: Tensor, reference: Tensor, coefficients: Tensor) -> LossInputs:
    ones = torch.ones_like(coefficients)
    return LossInputs(
        log_probs=log_probs,
        old_log_probs=log_probs.detach(),
        rollout_log_probs=log_probs.detach(),
        advantages=0 * ones,
        token_weights=ones,
        positive=ones > 0,
        coefficients=coefficients,
        importance_weights=3 * ones,
        entropy=ones,
        sequence=torch.zeros(len(ones), dtype=torch.int64),
        sequences=1,
        extra={"reference_log_probs": reference},
    )


@pytest.mark.parametrize("estimator", ["k1", "k2", "k3"])
def test_loss_of_a_kl_penalty_is_the_weighted_sum(estimator):
    generator = torch.Generator().manual_seed(2)
    log_probs, reference, shares = torch.rand(3, 6, generator=generator, dtype=torch.float64)
    log_probs.requires_grad_()
    found = KlPenalty(0.3, estimator, "loss").loss(inputs(log_probs, reference, shares))
    x = log_probs - reference
    terms = {"k1": x, "k2": x**2 / 2, "k3": reference.exp() / log_probs.exp() - 1 + x}[estimator]
    expected = 0.3 * (shares * terms).sum()
    torch.testing.assert_close(found.loss, expected, **EXACT)
    torch.testing.assert_close(
        gradient(found.loss, log_probs), gradient(expected, log_probs), **EXACT
    )
    assert found.update_means["reference/loss"] == found.loss.detach()


def test_kl_of_responses_sums_generated_tokens_only():
    log_probs = torch.tensor([[-1.0, -2.0, 9.0], [-0.5, 9.0, 9.0]])
    reference = torch.tensor([[-1.5, -1.0, 7.0], [-0.75, 7.0, 7.0]])
    mask = torch.tensor([[True, True, False], [True, False, False]])
    lost = KlPenalty(2.0, "k1", "reward").of_responses(log_probs, reference, mask)
    assert lost.tolist() == [2 * (0.5 - 1.0), 2 * 0.25]


@pytest.mark.parametrize("place", ["loss", "reward"])
def test_algorithm_with_kl_in_its_loss_updates_on_every_response(place):
    algorithm = get_algorithm("grpo", kl=KlPenalty(0.1, "k3", place))
    advantages, positive = torch.tensor([0.0, 1.0]), torch.tensor([False, True])
    assert algorithm.has_loss(advantages, positive).tolist() == [place == "loss", True]
