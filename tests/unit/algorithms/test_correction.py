"""Factors against float64 references, and what they make of a truncated distribution."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from megatron_resrl.algorithms import (
    correction_factors,
    effective_sample_size,
    log_ratios,
    ppo_clip,
    weight_sums,
)

CAP, BAND = 1.5, (0.7, 1.6)
FP32 = 2e-7
"""Factors of size at most 1.6, rounded once to fp32."""


def random_views() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Log-probs of trainer and engine, and the mask; [6, 9], the masked ones absurd."""
    generator = torch.Generator().manual_seed(2)
    trainer = -3 * torch.rand(6, 9, generator=generator)
    engine = trainer + 0.4 * torch.randn(6, 9, generator=generator)
    mask = torch.rand(6, 9, generator=generator) < 0.7
    return trainer.masked_fill(~mask, 50.0), engine.masked_fill(~mask, math.nan), mask


def reference(method: str) -> tuple[np.ndarray, np.ndarray]:
    """Factors and whether they were clipped, token by token."""
    trainer, engine, mask = (each.double().numpy() for each in random_views())
    factors, clipped = np.ones(mask.shape), np.zeros(mask.shape, dtype=bool)
    for row, column in np.argwhere(mask):
        drawn = [column] if method != "sequence_tis" else np.flatnonzero(mask[row])
        ratio = np.prod([np.exp(trainer[row, t]) / np.exp(engine[row, t]) for t in drawn])
        if method == "icepop":
            clipped[row, column] = not BAND[0] <= ratio <= BAND[1]
            factors[row, column] = 0.0 if clipped[row, column] else ratio
        else:
            clipped[row, column] = ratio > CAP
            factors[row, column] = min(ratio, CAP)
    return factors, clipped


@pytest.mark.parametrize("method", ["token_tis", "sequence_tis", "icepop"])
def test_correction_factors_equal_the_definition(method):
    trainer, engine, mask = random_views()
    trainer.requires_grad_()
    found = correction_factors(
        log_ratios(trainer, engine, mask), mask, method=method, cap=CAP, band=BAND
    )
    factors, clipped = reference(method)
    np.testing.assert_allclose(found.factors.numpy(), factors, atol=FP32, rtol=0)
    assert found.clipped.any()
    np.testing.assert_array_equal(found.clipped.numpy(), clipped)
    assert found.factors.dtype == torch.float32
    assert not found.factors.requires_grad


@pytest.mark.parametrize(
    ("method", "large", "small"),
    [("token_tis", CAP, 0.0), ("sequence_tis", CAP, 0.0), ("icepop", 0.0, 0.0)],
)
def test_correction_factors_never_overflow(method, large, small):
    mask = torch.ones(2, 2000, dtype=torch.bool)
    log_ratio = torch.tensor([[900.0], [-900.0]], dtype=torch.float64).expand(2, 2000)
    found = correction_factors(log_ratio, mask, method=method, cap=CAP, band=BAND)
    assert found.factors[0].eq(large).all()
    assert found.factors[1].eq(small).all()


@pytest.mark.parametrize("method", ["token_tis", "sequence_tis", "icepop"])
def test_correction_does_not_hide_a_log_prob_that_is_nan(method):
    mask = torch.ones(1, 1, dtype=torch.bool)
    log_ratio = log_ratios(torch.zeros(1, 1), torch.full((1, 1), math.nan), mask)
    found = correction_factors(log_ratio, mask, method=method, cap=CAP, band=BAND)
    assert found.factors.isnan().all()


def test_log_ratios_refuse_shapes_that_do_not_fit():
    ones = torch.ones(2, 3)
    with pytest.raises(ValueError, match=r"\[2, 3\], \[2, 3\] and \[3\]"):
        log_ratios(ones, ones, torch.ones(3, dtype=torch.bool))
    with pytest.raises(ValueError, match=r"dtype torch\.float32; bool"):
        log_ratios(ones, ones, ones)
    with pytest.raises(ValueError, match="token_tis, sequence_tis, icepop"):
        correction_factors(ones.double(), ones.bool(), method="tis", cap=CAP, band=BAND)


def test_effective_sample_size_of_shares_is_that_of_the_whole():
    weights = np.exp(np.random.default_rng(4).normal(size=50))
    shares = np.split(np.log(weights), [20, 20, 33])  # one of them empty
    found = effective_sample_size([weight_sums(torch.tensor(share)) for share in shares])
    assert found == pytest.approx(weights.sum() ** 2 / (50 * (weights**2).sum()), rel=1e-12)


def test_effective_sample_size_bears_weights_beyond_any_float():
    equal, alone = torch.full((4,), -5000.0).double(), torch.tensor([5000.0, 0, 0, 0]).double()
    assert effective_sample_size([weight_sums(equal)]) == pytest.approx(1.0)
    assert effective_sample_size([weight_sums(alone)]) == pytest.approx(0.25)
    assert math.isnan(effective_sample_size([]))


def test_correction_gives_the_exact_gradient_of_a_nucleus():
    """Expectations over all tokens of a categorical policy, no sampling error."""
    logits = torch.tensor([2.0, 1.2, 0.5, -0.3, -1.0, -2.0], dtype=torch.float64)
    logits.requires_grad_()
    reward = torch.tensor([0.3, 1.0, -0.7, 2.0, 5.0, -4.0], dtype=torch.float64)
    log_p = logits.log_softmax(0)
    nucleus = log_p.exp().cumsum(0) - log_p.exp() < 0.8
    mass = log_p.detach().exp()[nucleus].sum()
    log_q = log_p.masked_fill(~nucleus, -math.inf).log_softmax(0)
    (exact,) = torch.autograd.grad(
        -(log_p.exp() * reward)[nucleus].sum(), logits, retain_graph=True
    )

    def expected(method: str | None) -> torch.Tensor:
        """Gradient of the loss, averaged over draws from the truncated distribution."""
        per_token = ppo_clip(log_p[nucleus], log_p[nucleus].detach(), reward[nucleus]).per_token
        mask = torch.ones(int(nucleus.sum()), 1, dtype=torch.bool)  # responses of one token
        log_ratio = log_ratios(log_p[nucleus][:, None], log_q[nucleus][:, None], mask)
        torch.testing.assert_close(log_ratio.exp(), mass.expand(mask.shape))
        if method is not None:
            found = correction_factors(log_ratio, mask, method=method, cap=2.0, band=(0.5, 5.0))
            per_token = per_token * found.factors[:, 0]
        drawn = log_q[nucleus].exp().detach()
        return torch.autograd.grad((drawn * per_token).sum(), logits, retain_graph=True)[0]

    for method in ("token_tis", "sequence_tis", "icepop"):
        torch.testing.assert_close(expected(method), exact, atol=FP32, rtol=0)
    # Uncorrected, a state counts the more the less of it the truncation keeps.
    assert mass < 0.95
    torch.testing.assert_close(expected(None), exact / mass, atol=1e-14, rtol=0)
