"""Losses of whole algorithms against formulas on full tensors, in float64."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from megatron_resrl.algorithms import Algorithm, LossInputs, entropy_bonus, get_algorithm

EXACT = {"rtol": 1e-12, "atol": 1e-12}
LENGTHS = (5, 2, 7, 1)
LONGEST = max(LENGTHS)
MASK_BT = torch.arange(LONGEST) < torch.tensor(LENGTHS)[:, None]


@dataclasses.dataclass
class Batch:
    """Padded [B, T] and per response [B]."""

    log_probs: Tensor
    old_log_probs: Tensor
    advantages: Tensor
    importance_weights: Tensor
    entropy: Tensor

    @classmethod
    def random(cls, *, apart: float = 0.5) -> Batch:
        """Log-probabilities that differ by about `apart` from the old ones."""
        generator = torch.Generator().manual_seed(3)

        def draw(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator, dtype=torch.float64)

        old = -draw(len(LENGTHS), LONGEST).abs() - 1
        return cls(
            log_probs=(old + apart * draw(*old.shape)).requires_grad_(),
            old_log_probs=old,
            advantages=torch.tensor([1.2, -0.7, 0.0, -1.5], dtype=torch.float64),
            importance_weights=draw(*old.shape).abs(),
            entropy=draw(*old.shape).abs().requires_grad_(),
        )

    def inputs(self, coefficients: Tensor, order: Tensor | None = None) -> LossInputs:
        """Generated tokens one after the other, or in another order of the tokens."""
        sequence, position = MASK_BT.nonzero(as_tuple=True)
        if order is not None:
            sequence, position = sequence[order], position[order]
        token = sequence, position
        return LossInputs(
            log_probs=self.log_probs[token],
            old_log_probs=self.old_log_probs[token],
            rollout_log_probs=self.old_log_probs[token],
            advantages=self.advantages[sequence],
            token_weights=torch.ones(len(sequence), dtype=torch.float64),
            positive=self.advantages[sequence] > 0,
            coefficients=coefficients[sequence],
            importance_weights=self.importance_weights[token],
            entropy=self.entropy[token],
            sequence=sequence,
            sequences=len(LENGTHS),
        )


SEQUENCE_MEAN = 1 / (torch.tensor(LENGTHS, dtype=torch.float64) * len(LENGTHS))
TOKEN_MEAN = torch.full((len(LENGTHS),), 1 / sum(LENGTHS), dtype=torch.float64)


def cispo(batch: Batch) -> Tensor:
    """MiniMax-M1, equations 4 and 5; mean over all tokens."""
    weight = (batch.log_probs - batch.old_log_probs).exp().detach().clamp(1 - 0.3, 1 + 0.4)
    objective = weight * batch.advantages[:, None] * batch.log_probs
    return -(objective * batch.importance_weights)[MASK_BT].mean()


def gspo(batch: Batch) -> Tensor:
    """GSPO, equations 5 and 7: one ratio per response; mean over responses."""
    losses = []
    for row, length in enumerate(LENGTHS):
        fall = batch.log_probs[row, :length] - batch.old_log_probs[row, :length]
        ratio, advantage = fall.mean().exp(), batch.advantages[row]
        objective = torch.minimum(ratio * advantage, ratio.clamp(1 - 0.1, 1 + 0.2) * advantage)
        losses.append(-objective * batch.importance_weights[row, :length].mean())
    return torch.stack(losses).mean()


def llds(batch: Batch) -> Tensor:
    """GRPO's clip plus 0.3 x the term of the paper's code (masked_mean over all tokens)."""
    log_ratio = batch.log_probs - batch.old_log_probs
    advantages = batch.advantages[:, None]
    ratio = log_ratio.exp()
    clipped = torch.minimum(ratio * advantages, ratio.clamp(0.8, 1.2) * advantages)
    fall = torch.maximum(torch.zeros_like(log_ratio), -log_ratio)
    kept = (advantages >= 0).double()
    fell = ((-log_ratio * MASK_BT).sum(1, keepdim=True) > 0).double()
    policy = -(clipped * batch.importance_weights)[MASK_BT].mean()
    return policy + 0.3 * (fell * kept * fall)[MASK_BT].mean()


def gspo_token(batch: Batch) -> Tensor:
    """GSPO, equations 13 and 14: the response's ratio, the gradient of the token's own."""
    losses = []
    for row, length in enumerate(LENGTHS):
        log_probs = batch.log_probs[row, :length]
        fall = log_probs - batch.old_log_probs[row, :length]
        ratio = fall.mean().exp().detach() * log_probs.exp() / log_probs.exp().detach()
        advantage = batch.advantages[row]
        objective = torch.minimum(ratio * advantage, ratio.clamp(1 - 0.1, 1 + 0.2) * advantage)
        losses.append(-(objective * batch.importance_weights[row, :length]).mean())
    return torch.stack(losses).mean()


def gmpo(batch: Batch) -> Tensor:
    """GMPO, equation 4: |min(r^s, clip(r)^s)| of each token to the power s = sign(A); their
    geometric mean."""
    losses = []
    for row, length in enumerate(LENGTHS):
        ratio = (batch.log_probs[row, :length] - batch.old_log_probs[row, :length]).exp()
        sign = torch.sign(batch.advantages[row])
        clipped = ratio.clamp(math.exp(-0.3), math.exp(0.2))
        smaller = torch.minimum(ratio**sign, clipped**sign) ** sign
        mean = smaller.prod() ** (1 / length)
        weight = batch.importance_weights[row, :length].mean()
        losses.append(-batch.advantages[row] * mean * weight)
    return torch.stack(losses).mean()


def sapo(batch: Batch) -> Tensor:
    """SAPO: 4 / tau sigmoid(tau (r - 1)) A; mean over responses."""
    ratio = (batch.log_probs - batch.old_log_probs).exp()
    advantages = batch.advantages[:, None]
    gates = [4 / tau / (1 + torch.exp(-tau * (ratio - 1))) for tau in (0.8, 2.5)]
    loss = -torch.where(advantages > 0, *gates) * advantages * batch.importance_weights
    return torch.stack([row[mask].mean() for row, mask in zip(loss, MASK_BT, strict=True)]).mean()


def _dppo(batch: Batch, apart: Tensor, low: float, high: float) -> Tensor:
    """verl's form: the truncated ratio is a constant; tokens out of the region are masked."""
    rises = batch.log_probs.detach() > batch.old_log_probs
    advantages = batch.advantages[:, None]
    masked = torch.where(advantages > 0, rises & (apart > high), ~rises & (apart > low))
    ratio = (batch.log_probs - batch.old_log_probs).exp().detach().clamp(max=1.5)
    objective = ratio * advantages * batch.log_probs * ~masked
    return -(objective * batch.importance_weights)[MASK_BT].mean()


def dppo_tv(batch: Batch) -> Tensor:
    """By |p - q|."""
    apart = (batch.log_probs.detach().exp() - batch.old_log_probs.exp()).abs()
    return _dppo(batch, apart, 0.02, 0.03)


def dppo_kl(batch: Batch) -> Tensor:
    """By the KL divergence of two Bernoulli distributions, from torch."""
    new, old = (
        torch.distributions.Bernoulli(each.detach().exp())
        for each in (batch.log_probs, batch.old_log_probs)
    )
    return _dppo(batch, torch.distributions.kl_divergence(old, new), 0.002, 0.003)


def rft(batch: Batch) -> Tensor:
    """The cross-entropy of the tokens of correct responses, whose advantages are 1."""
    correct = MASK_BT & (batch.advantages > 0)[:, None]
    loss = -batch.log_probs * batch.importance_weights * batch.advantages[:, None].clamp(min=0)
    return loss[correct].sum() / MASK_BT.sum()


CASES: dict[str, tuple[Any, dict[str, Any], Tensor]] = {
    "gspo_token": (gspo_token, {"clip_low": 0.1, "clip_high": 0.2}, SEQUENCE_MEAN),
    "gmpo": (gmpo, {"clip_low": 0.3, "clip_high": 0.2}, SEQUENCE_MEAN),
    "sapo": (sapo, {"tau_positive": 0.8, "tau_negative": 2.5}, SEQUENCE_MEAN),
    "dppo": (dppo_tv, {"clip_low": 0.02, "clip_high": 0.03, "ratio_cap": 1.5}, TOKEN_MEAN),
    "dppo kl": (
        dppo_kl,
        {"divergence": "kl", "clip_low": 0.002, "clip_high": 0.003, "ratio_cap": 1.5},
        TOKEN_MEAN,
    ),
    "cispo": (cispo, {"clip_low": 0.3, "clip_high": 0.4}, TOKEN_MEAN),
    "gspo": (gspo, {"clip_low": 0.1, "clip_high": 0.2}, SEQUENCE_MEAN),
    "llds": (
        llds,
        {"likelihood_coefficient": 0.3, "likelihood_tolerance": 0.0},
        TOKEN_MEAN,
    ),
}


def _made(name: str) -> Algorithm:
    """The algorithm of a case, whose name is the first word."""
    return get_algorithm(name.split()[0], **CASES[name][1])


@pytest.mark.parametrize("name", CASES)
def test_policy_loss_is_the_published_formula(name: str) -> None:
    formula, _, coefficients = CASES[name]
    batch = Batch.random()
    loss = _made(name).policy_loss(batch.inputs(coefficients)).loss
    expected = formula(batch)
    torch.testing.assert_close(loss, expected, **EXACT)
    found, wanted = (torch.autograd.grad(each, batch.log_probs)[0] for each in (loss, expected))
    torch.testing.assert_close(found, wanted, **EXACT)
    assert found[MASK_BT].count_nonzero() > 5


@pytest.mark.parametrize("name", CASES)
def test_policy_loss_depends_on_no_order_of_tokens(name: str) -> None:
    """As packed and padded micro-batches, and shares of ranks, have other orders."""
    _, _, coefficients = CASES[name]
    batch, algorithm = Batch.random(), _made(name)
    order = torch.randperm(sum(LENGTHS), generator=torch.Generator().manual_seed(0))
    first, second = (
        algorithm.policy_loss(batch.inputs(coefficients, each)) for each in (None, order)
    )
    torch.testing.assert_close(first.loss, second.loss, **EXACT)
    for metric, total in first.token_means.items():
        torch.testing.assert_close(total, second.token_means[metric], **EXACT)


@pytest.mark.parametrize("name", ["gspo", "llds", "gmpo", "sapo"])
def test_policy_loss_passes_gradcheck(name: str) -> None:
    """Weights that are constants by definition, as CISPO's, are in no difference quotient."""
    _, _, coefficients = CASES[name]
    batch, algorithm = Batch.random(), _made(name)

    def loss(log_probs: Tensor) -> Tensor:
        moved = dataclasses.replace(batch, log_probs=log_probs)
        return algorithm.policy_loss(moved.inputs(coefficients)).loss

    assert torch.autograd.gradcheck(loss, batch.log_probs, eps=1e-7)


def test_cispo_keeps_the_gradient_of_clipped_tokens() -> None:
    batch = Batch.random(apart=3.0)
    inputs = batch.inputs(TOKEN_MEAN)
    outputs = get_algorithm("cispo", clip_high=0.1).policy_loss(inputs)
    gradient = torch.autograd.grad(outputs.loss, batch.log_probs)[0]
    has_advantage = MASK_BT & (batch.advantages != 0)[:, None]
    assert outputs.token_means["clip_fraction/high"] > 3
    assert (gradient[has_advantage] != 0).all()


def test_gspo_clips_whole_responses() -> None:
    batch = Batch.random()
    outputs = get_algorithm("gspo").policy_loss(batch.inputs(SEQUENCE_MEAN))
    gradient = torch.autograd.grad(outputs.loss, batch.log_probs)[0]
    clipped = sum(int(outputs.token_means[f"clip_fraction/{side}"]) for side in ("low", "high"))
    rows = [bool(row[mask].any()) for row, mask in zip(gradient, MASK_BT, strict=True)]
    alone = [length for length, moved in zip(LENGTHS, rows, strict=True) if not moved]
    # The third has no advantage, and is not counted as clipped.
    assert clipped == sum(alone) - LENGTHS[2]
    assert clipped > 0


def test_gspo_token_is_gspo_where_advantages_are_equal() -> None:
    batch = Batch.random(apart=0.1)
    options = {"clip_low": 0.05, "clip_high": 0.05}
    inputs = batch.inputs(SEQUENCE_MEAN)
    inputs = dataclasses.replace(inputs, importance_weights=torch.ones_like(inputs.log_probs))
    losses = [get_algorithm(n, **options).policy_loss(inputs).loss for n in ("gspo", "gspo_token")]
    torch.testing.assert_close(*losses, **EXACT)
    gradients = [
        torch.autograd.grad(each, batch.log_probs, retain_graph=True)[0] for each in losses
    ]
    torch.testing.assert_close(*gradients, **EXACT)
    assert gradients[0].any()


def test_gspo_token_keeps_the_advantages_of_tokens_apart() -> None:
    batch = Batch.random(apart=0.01)
    inputs = batch.inputs(SEQUENCE_MEAN)
    factor = torch.linspace(0.1, 1.0, len(inputs.log_probs), dtype=torch.float64)
    plain, weighted = (
        torch.autograd.grad(
            get_algorithm("gspo_token", clip_high=0.5, clip_low=0.5)
            .policy_loss(dataclasses.replace(inputs, advantages=advantages))
            .loss,
            batch.log_probs,
            retain_graph=True,
        )[0][MASK_BT]
        for advantages in (inputs.advantages, factor * inputs.advantages)
    )
    torch.testing.assert_close(weighted, factor * plain, **EXACT)


def test_dppo_clips_rare_tokens_later_than_a_ratio_does() -> None:
    """A ratio of 3 of a token of probability 1e-3 moves 0.002; of one of 0.3 it moves 0.6."""
    old = torch.tensor([1e-3, 0.3], dtype=torch.float64).log()
    new = (old + torch.tensor(3.0).log()).requires_grad_()
    ones = torch.ones(2, dtype=torch.float64)
    inputs = dataclasses.replace(
        Batch.random().inputs(TOKEN_MEAN),
        log_probs=new,
        old_log_probs=old,
        advantages=ones,
        coefficients=ones,
        importance_weights=ones,
    )
    for divergence in ("tv", "kl"):
        loss = get_algorithm("dppo", divergence=divergence).policy_loss(inputs).loss
        gradient = torch.autograd.grad(loss, new)[0]
        assert gradient.tolist() == pytest.approx([-3.0, 0.0])
    clipped = get_algorithm("grpo").policy_loss(inputs).loss
    assert not torch.autograd.grad(clipped, new)[0].any()


def test_dppo_takes_the_engine_as_anchor_if_asked_to() -> None:
    batch = Batch.random()
    inputs = batch.inputs(TOKEN_MEAN)
    moved = dataclasses.replace(
        inputs, old_log_probs=inputs.log_probs.detach(), rollout_log_probs=inputs.old_log_probs
    )
    engine = get_algorithm("dppo", anchor="engine", **CASES["dppo"][1]).policy_loss(moved).loss
    torch.testing.assert_close(engine, dppo_tv(batch), **EXACT)


def test_sapo_has_a_finite_gradient_at_any_ratio() -> None:
    batch = Batch.random(apart=300.0)
    loss = get_algorithm("sapo").policy_loss(batch.inputs(SEQUENCE_MEAN)).loss
    gradient = torch.autograd.grad(loss, batch.log_probs)[0]
    assert loss.isfinite()
    assert gradient.isfinite().all()


def test_rft_is_the_cross_entropy_of_correct_responses() -> None:
    batch = Batch.random()
    batch.advantages = (batch.advantages > 0).double()
    loss = get_algorithm("rft").policy_loss(batch.inputs(TOKEN_MEAN)).loss
    torch.testing.assert_close(loss, rft(batch), **EXACT)
    positive = torch.tensor([True, False, True])
    assert get_algorithm("rft").in_denominator(positive).tolist() == positive.tolist()
    assert get_algorithm("psr").in_denominator(positive).all()


def test_llds_tolerates_rounding_between_two_passes() -> None:
    batch = Batch.random(apart=1e-6)
    term = get_algorithm("llds").likelihood_term(batch.inputs(TOKEN_MEAN))
    assert term.loss == 0
    assert not torch.autograd.grad(term.loss, batch.log_probs)[0].any()


def test_llds_has_a_loss_on_responses_without_advantage() -> None:
    advantages = torch.tensor([0.0, -1.0])
    positive = torch.tensor([True, False])
    assert get_algorithm("llds").has_loss(advantages, positive).tolist() == [True, True]
    assert get_algorithm("grpo").has_loss(advantages, positive).tolist() == [False, True]
    bonus = get_algorithm("grpo", entropy_coefficient=0.01)
    assert bonus.has_loss(advantages, positive).tolist() == [True, True]


def test_entropy_bonus_is_the_mean_entropy_subtracted() -> None:
    batch = Batch.random()
    outputs = entropy_bonus(batch.inputs(SEQUENCE_MEAN), 0.2)
    rows = zip(batch.entropy, LENGTHS, strict=True)
    mean = torch.stack([row[:length].mean() for row, length in rows]).mean()
    torch.testing.assert_close(outputs.loss, -0.2 * mean, **EXACT)
    torch.testing.assert_close(outputs.update_means["entropy_bonus"], 0.2 * mean.detach(), **EXACT)
    (gradient,) = torch.autograd.grad(outputs.loss, batch.entropy)
    assert (gradient[MASK_BT] < 0).all()


def test_sequence_sum_of_no_responses_is_empty() -> None:
    batch = Batch.random()
    empty = batch.inputs(SEQUENCE_MEAN, torch.empty(0, dtype=torch.int64))
    inputs = dataclasses.replace(empty, sequences=0)
    total = inputs.sequence_mean(inputs.log_probs).sum()
    total.backward()
    assert total == 0
