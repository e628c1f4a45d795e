"""On-policy distillation against its formula, in float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from megatron_resrl.algorithms import LossInputs, get_algorithm

EXACT = {"rtol": 1e-12, "atol": 1e-12}
"""float64, a few operations."""


def draw(seed: int, *shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def inputs_of(log_probs: Tensor, old: Tensor, teacher: Tensor, weights: Tensor) -> LossInputs:
    ones = torch.ones_like(old)
    return LossInputs(
        log_probs=log_probs,
        old_log_probs=old,
        rollout_log_probs=old,
        advantages=0 * ones,
        token_weights=weights,
        positive=torch.arange(len(ones)) % 2 == 0,
        coefficients=ones / len(ones),
        importance_weights=draw(4, len(ones)).abs(),
        entropy=ones,
        sequence=torch.arange(len(ones)) // 3,
        sequences=len(ones) // 3,
        extra={"teacher_log_probs": teacher},
    )


def test_distillation_is_the_clipped_objective_of_its_advantages():
    old = -1 - draw(1, 12).abs()
    log_probs = (old + 0.3 * draw(2, 12)).requires_grad_()
    teacher, weights = -1 - draw(3, 12).abs(), draw(5, 12).abs()
    inputs = inputs_of(log_probs, old, teacher, weights)
    algorithm = get_algorithm("distillation", clip_low=0.1, clip_high=0.2, positive_weight=0.5)
    outputs = algorithm.policy_loss(inputs)
    advantages = (teacher - old) * weights * torch.where(inputs.positive, 0.5, 1.0)
    ratio = (log_probs - old).exp()
    clipped = torch.minimum(ratio * advantages, ratio.clamp(0.9, 1.2) * advantages)
    expected = -(clipped * inputs.importance_weights).mean()
    torch.testing.assert_close(outputs.loss, expected, **EXACT)
    found, wanted = (torch.autograd.grad(x, log_probs)[0] for x in (outputs.loss, expected))
    torch.testing.assert_close(found, wanted, **EXACT)
    assert 0 < int((found == 0).sum()) < 12
    mean = outputs.token_means["distillation/reverse_kl"] / 12
    torch.testing.assert_close(mean, (old - teacher).mean(), **EXACT)
    assert {"approx_kl", "clip_fraction/low"} <= outputs.token_means.keys()


def test_distillation_has_the_gradient_of_the_reverse_kl():
    """Over all tokens of a vocabulary, each as often as the policy draws it."""
    logits, teacher = draw(6, 9).requires_grad_(), draw(7, 9).log_softmax(0)
    log_probs = logits.log_softmax(0)
    drawn, ones = log_probs.detach(), torch.ones(9, dtype=torch.float64)
    inputs = inputs_of(log_probs, drawn, teacher, ones)
    inputs.coefficients.copy_(drawn.exp())
    inputs.importance_weights.fill_(1.0)
    loss = get_algorithm("distillation").policy_loss(inputs).loss
    found = torch.autograd.grad(loss, logits)[0]
    log_probs = logits.log_softmax(0)
    kl = (log_probs.exp() * (log_probs - teacher)).sum()
    torch.testing.assert_close(found, torch.autograd.grad(kl, logits)[0], **EXACT)


@pytest.mark.parametrize("score", [0.0, 1.0])
def test_distillation_learns_from_every_response(score):
    algorithm = get_algorithm("distillation")
    scores = torch.tensor([score, 1.0])
    advantages = algorithm.sample_advantages(scores, scores, torch.zeros(2, dtype=torch.int64))
    assert advantages.tolist() == [0.0, 0.0]
    positive = algorithm.positive(scores, advantages)
    assert algorithm.has_loss(advantages, positive).all()
