"""Vocab-parallel log-probs on one rank; tests/distributed/policy has the split vocabulary."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from megatron_resrl.policy import log_probs
from megatron_resrl.policy.log_probs import vocab_parallel_log_probs

VOCABULARY, PADDED, HIDDEN, TOKENS = 131, 132, 16, 25


@pytest.fixture
def inputs() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """hidden [N, H], weight [V padded, H], targets [N], factors [N]."""
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(TOKENS, HIDDEN, generator=generator)
    weight = torch.randn(PADDED, HIDDEN, generator=generator)
    targets = torch.randint(0, VOCABULARY, (TOKENS,), generator=generator)
    return hidden, weight, targets, torch.randn(TOKENS, generator=generator)


def gradients(inputs: tuple[torch.Tensor, ...], **options: Any) -> list[torch.Tensor]:
    """log-probs, entropy, and the gradients of sum(factors * log_probs)."""
    hidden, weight, targets, factors = inputs
    hidden, weight = hidden.clone().requires_grad_(), weight.clone().requires_grad_()
    log_probs, entropy = vocab_parallel_log_probs(
        hidden, weight, targets, vocab_size=VOCABULARY, **options
    )
    (factors * log_probs).sum().backward()
    return [log_probs.detach(), entropy, hidden.grad, weight.grad]


def exact(inputs: tuple[torch.Tensor, ...], temperature: float) -> list[torch.Tensor]:
    """The same from log_softmax and autograd in float64."""
    hidden, weight, targets, factors = (x.double() if x.is_floating_point() else x for x in inputs)
    hidden.requires_grad_()
    weight.requires_grad_()
    logits = hidden @ weight[:VOCABULARY].T / temperature
    distribution = logits.log_softmax(-1)
    log_probs = distribution.gather(1, targets[:, None])[:, 0]
    (factors * log_probs).sum().backward()
    entropy = -(distribution.exp() * distribution).sum(-1)
    return [log_probs.detach(), entropy.detach(), hidden.grad, weight.grad]


@pytest.mark.parametrize("temperature", [1.0, 0.7, 1.5])
@pytest.mark.parametrize("chunk_tokens", [None, 1, 3, TOKENS])
def test_log_probs_and_gradients_equal_float64_autograd(
    inputs: tuple[torch.Tensor, ...], temperature: float, chunk_tokens: int | None
) -> None:
    found = gradients(inputs, temperature=temperature, chunk_tokens=chunk_tokens)
    for ours, reference in zip(found, exact(inputs, temperature), strict=True):
        # fp32 rounding of logits up to 20.
        torch.testing.assert_close(ours.double(), reference, atol=2e-5, rtol=1e-5)


def test_log_probs_give_vocabulary_padding_no_mass(
    inputs: tuple[torch.Tensor, ...],
) -> None:
    hidden, weight, targets, factors = inputs
    weight = weight.clone()
    weight[VOCABULARY:] = 1e3
    found = gradients((hidden, weight, targets, factors))
    assert torch.equal(found[0], gradients(inputs)[0])
    assert not found[3][VOCABULARY:].any()


def test_entropy_has_no_gradient(inputs: tuple[torch.Tensor, ...]) -> None:
    hidden, weight, targets, _ = inputs
    hidden.requires_grad_()
    _, entropy = vocab_parallel_log_probs(hidden, weight, targets, vocab_size=VOCABULARY)
    assert not entropy.requires_grad


def test_log_probs_stay_finite_where_probabilities_underflow(
    inputs: tuple[torch.Tensor, ...],
) -> None:
    hidden, *rest = inputs
    log_probs, entropy, *grads = gradients((hidden * 1e4, *rest))
    assert all(torch.isfinite(x).all() for x in (log_probs, entropy, *grads))
    assert (entropy >= 0).all()


def test_log_probs_of_no_tokens_are_empty(inputs: tuple[torch.Tensor, ...]) -> None:
    hidden, weight, targets, factors = inputs
    found = gradients((hidden[:0], weight, targets[:0], factors[:0]))
    assert [x.numel() for x in found[:3]] == [0, 0, 0]
    assert not found[3].any()


def test_log_probs_of_bf16_are_fp32_with_bf16_gradients(
    inputs: tuple[torch.Tensor, ...],
) -> None:
    hidden, weight, targets, factors = inputs
    rounded = (hidden.bfloat16(), weight.bfloat16(), targets, factors)
    found = gradients(rounded)
    assert [x.dtype for x in found] == [torch.float32] * 2 + [torch.bfloat16] * 2
    for ours, reference in zip(found, exact(rounded, 1.0), strict=True):
        # Logits up to 20 are rounded to 8 bits: 0.06.
        torch.testing.assert_close(ours.double(), reference, atol=0.1, rtol=0.05)


class LargestTensor(TorchDispatchMode):
    """Records the number of elements of the largest tensor that any operation returns."""

    def __init__(self) -> None:
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for value in result if isinstance(result, (tuple, list)) else (result,):
            if isinstance(value, torch.Tensor):
                self.elements = max(self.elements, value.numel())
        return result


def test_log_probs_hold_logits_of_one_chunk_at_once() -> None:
    tokens, vocabulary, hidden_size, chunk_tokens = 96, 640, 8, 10
    hidden = torch.randn(tokens, hidden_size, requires_grad=True)
    weight = torch.randn(vocabulary, hidden_size, requires_grad=True)
    targets = torch.randint(0, vocabulary, (tokens,))
    with LargestTensor() as largest:
        log_probs, _ = vocab_parallel_log_probs(
            hidden, weight, targets, vocab_size=vocabulary, chunk_tokens=chunk_tokens
        )
        log_probs.sum().backward()
    assert largest.elements == chunk_tokens * vocabulary


class Memory:
    """Counts the bytes that torch's CPU allocator has given and not yet got back."""

    def __enter__(self) -> Memory:
        self._profile = torch.profiler.profile(profile_memory=True)
        self._profile.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self._profile.__exit__(*error)
        events = self._profile.profiler.kineto_results.events()
        memory = sorted(
            (event.start_ns(), number, event.nbytes())
            for number, event in enumerate(events)
            if event.name() == "[memory]"
        )
        self.peak = max(itertools.accumulate(size for _, _, size in memory))
        """The most bytes at once."""


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_log_probs_hold_as_little_at_once_as_documented(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype
) -> None:
    rows, width, tokens, chunk_tokens = 512, 1024, 256, 128
    monkeypatch.setattr(log_probs, "CHUNK_ELEMENTS", rows * chunk_tokens)
    chunk = 4 * rows * chunk_tokens
    narrow = dtype.itemsize * rows * chunk_tokens
    hidden = torch.randn(tokens, width, dtype=dtype, requires_grad=True)
    weight = torch.randn(rows, width, dtype=dtype, requires_grad=True)
    targets = torch.randint(0, rows, (tokens,))
    with Memory() as forward:
        result, _ = vocab_parallel_log_probs(hidden, weight, targets, vocab_size=rows - 1)
    vectors = 20 * 4 * tokens
    assert 1.9 * chunk < forward.peak <= 2 * chunk + vectors
    total = result.sum()
    with Memory() as backward:
        total.backward()
    summed = (4 + (dtype.itemsize if dtype != torch.float32 else 0)) * weight.numel()
    summed += dtype.itemsize * hidden.numel()
    widened = 0 if dtype == torch.float32 else chunk  # A CPU makes the product fp32 to add it.
    assert backward.peak <= chunk + narrow + widened + summed + vectors


@pytest.mark.parametrize("chunk_tokens", [None, 3])
def test_entropy_gradient_equals_float64_autograd(
    inputs: tuple[torch.Tensor, ...], chunk_tokens: int | None
) -> None:
    hidden, weight, targets, factors = inputs
    found = []
    for dtype in (torch.float32, torch.float64):
        leaves = [x.to(dtype, copy=True).requires_grad_() for x in (hidden, weight)]
        log_p, entropy = vocab_parallel_log_probs(
            *leaves,
            targets,
            vocab_size=VOCABULARY,
            temperature=0.7,
            chunk_tokens=chunk_tokens,
            entropy_gradient=True,
        )
        assert log_p.dtype == dtype
        loss = (factors * (0.3 * log_p + entropy)).sum()
        found.append(torch.autograd.grad(loss, leaves))
        assert not found[-1][1][VOCABULARY:].any()
    wide = [x.double().requires_grad_() for x in (hidden, weight)]
    distribution = (wide[0] @ wide[1][:VOCABULARY].T / 0.7).log_softmax(-1)
    entropy = -(distribution.exp() * distribution).sum(-1)
    chosen = distribution.gather(1, targets[:, None])[:, 0]
    expected = torch.autograd.grad((factors * (0.3 * chosen + entropy)).sum(), wide)
    for ours, exact_gradient in zip(found[0], expected, strict=True):
        torch.testing.assert_close(ours.double(), exact_gradient, atol=1e-4, rtol=1e-4)
    for ours, exact_gradient in zip(found[1], expected, strict=True):
        torch.testing.assert_close(ours, exact_gradient, atol=1e-10, rtol=1e-10)
