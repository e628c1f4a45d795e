"""The fused cross-entropy on one rank; tests/distributed/policy has the split vocabulary."""

from __future__ import annotations

import pytest
import torch

from megatron_resrl.policy.cross_entropy import TokenLoss, vocab_parallel_cross_entropy

VOCABULARY, PADDED, HIDDEN, TOKENS = 131, 132, 16, 25


@pytest.fixture
def inputs() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """hidden [N, H], weight [V padded, H], targets [N]."""
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(TOKENS, HIDDEN, generator=generator)
    weight = torch.randn(PADDED, HIDDEN, generator=generator)
    return hidden, weight, torch.randint(0, VOCABULARY, (TOKENS,), generator=generator)


def exact(
    hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor, loss: TokenLoss
) -> list[torch.Tensor]:
    """Loss, sums and gradients by torch's own functions in float64."""
    hidden, weight = hidden.double().requires_grad_(), weight.double().requires_grad_()
    logits = hidden @ weight[:VOCABULARY].T
    negative = torch.nn.functional.cross_entropy(logits, targets, reduction="sum")
    squares = logits.logsumexp(-1).square().sum()
    total = loss.coefficient * (negative + loss.z_loss_coefficient * squares)
    (3.0 * total).backward()
    sums = torch.stack([negative, squares]).detach()
    return [total.detach(), sums, hidden.grad, weight.grad]


@pytest.mark.parametrize("z_loss", [0.0, 0.01])
@pytest.mark.parametrize("chunk_tokens", [None, 1, 3, TOKENS])
def test_cross_entropy_and_gradients_equal_float64_autograd(inputs, z_loss, chunk_tokens):
    hidden, weight, targets = inputs
    loss = TokenLoss(1 / 7, z_loss)
    own = hidden.clone().requires_grad_(), weight.clone().requires_grad_()
    found, sums = vocab_parallel_cross_entropy(
        *own, targets, loss, vocab_size=VOCABULARY, chunk_tokens=chunk_tokens
    )
    (3.0 * found).backward()
    ours = [found.detach(), sums, own[0].grad, own[1].grad]
    for mine, reference in zip(ours, exact(*inputs, loss), strict=True):
        # fp32 rounding of sums of 25 terms up to 400.
        torch.testing.assert_close(mine.double(), reference, atol=2e-5, rtol=2e-5)
    assert own[1].grad[VOCABULARY:].abs().max() == 0


def test_cross_entropy_gives_vocabulary_padding_no_mass(inputs):
    hidden, weight, targets = inputs
    heavy = weight.clone()
    heavy[VOCABULARY:] = 1e3
    loss = TokenLoss(1.0)
    with torch.no_grad():
        plain, padded = (
            vocab_parallel_cross_entropy(hidden, each, targets, loss, vocab_size=VOCABULARY)[0]
            for each in (weight, heavy)
        )
    assert plain == padded


def test_cross_entropy_of_no_token_is_zero_with_zero_gradients(inputs):
    _, weight, _ = inputs
    hidden = torch.empty(0, HIDDEN, requires_grad=True)
    own = weight.clone().requires_grad_()
    targets = torch.empty(0, dtype=torch.int64)
    loss, sums = vocab_parallel_cross_entropy(
        hidden, own, targets, TokenLoss(1.0, 1.0), vocab_size=VOCABULARY
    )
    loss.backward()
    assert loss == 0
    assert sums.tolist() == [0, 0]
    assert own.grad.abs().max() == 0


def test_cross_entropy_refuses_a_second_backward_pass(inputs):
    hidden, weight, targets = inputs
    own = weight.clone().requires_grad_()
    loss, _ = vocab_parallel_cross_entropy(
        hidden, own, targets, TokenLoss(1.0), vocab_size=VOCABULARY
    )
    loss.backward(retain_graph=True)
    # The gradients were scaled in place: a second pass would scale them again.
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()
