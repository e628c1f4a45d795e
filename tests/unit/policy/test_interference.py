from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from unit.policy.interference_tokens import POSITIVES, VOCABULARY, tokens

from megatron_resrl.policy.interference import (
    interference_metrics,
    logit_factors,
    representation_cosines,
    representation_factors,
)


def head_gradients(hidden, targets, weight, temperature):
    """Gradient of -log p(target) in the output matrix for every token, by autograd."""
    weight = weight[:VOCABULARY].clone().requires_grad_()
    gradients = []
    for state, target in zip(hidden, targets, strict=True):
        loss = -torch.log_softmax(weight @ state / temperature, 0)[target]
        gradients.append(torch.autograd.grad(loss, weight)[0].flatten())
    return torch.stack(gradients)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("chunk_columns", [1, 5, 23, None])
def test_interference_factors_multiply_to_inner_products(temperature, chunk_columns):
    positive, targets_positive, negative, targets_negative, weight = tokens()
    expected = (
        head_gradients(positive, targets_positive, weight, temperature)
        @ head_gradients(negative, targets_negative, weight, temperature).T
    )
    logit = logit_factors(
        *(positive, targets_positive, negative, targets_negative, weight),
        vocab_size=VOCABULARY,
        temperature=temperature,
        chunk_columns=chunk_columns,
    )
    actual = logit * representation_factors(positive, negative)
    torch.testing.assert_close(actual, expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 0.05)])
def test_interference_of_narrow_formats_is_that_of_float64(dtype, tolerance):
    wide = [value.double() if value.is_floating_point() else value for value in tokens(1, dtype)]
    expected = logit_factors(*wide, vocab_size=VOCABULARY)
    actual = logit_factors(*tokens(1, dtype), vocab_size=VOCABULARY)
    assert actual.dtype == torch.float64
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)


@settings(deadline=None)
@given(st.integers(0, 1000), st.floats(0.3, 3.0))
def test_interference_is_the_same_if_sides_are_exchanged(seed, temperature):
    positive, targets_positive, negative, targets_negative, weight = tokens(seed)
    options = {"vocab_size": VOCABULARY, "temperature": temperature, "chunk_columns": 10}
    there = (positive, targets_positive, negative, targets_negative)
    back = (negative, targets_negative, positive, targets_positive)
    forward = logit_factors(*there, weight, **options)
    torch.testing.assert_close(forward, logit_factors(*back, weight, **options).T)
    torch.testing.assert_close(
        representation_factors(positive, negative), representation_factors(negative, positive).T
    )
    # A token meets itself with its squared length.
    own = logit_factors(*there[:2], *there[:2], weight, **options)
    assert (own.diagonal() >= 0).all()
    assert (forward.abs() <= 2 / temperature**2 + 1e-9).all()


def test_padding_rows_change_nothing_whatever_they_hold():
    *batch, weight = tokens()
    clean = logit_factors(*batch, weight[:VOCABULARY], vocab_size=VOCABULARY)
    weight[VOCABULARY:] = 1e6
    found = logit_factors(*batch, weight, vocab_size=VOCABULARY)
    # Some CPUs round products of a longer matrix's rows otherwise; one padded row would give 1e6.
    torch.testing.assert_close(found, clean, atol=1e-6, rtol=0)


def test_interference_cosines_are_those_of_the_angles():
    x = torch.tensor([[3.0, 0.0], [0.0, 0.0]])
    y = torch.tensor([[1.0, 1.0], [0.0, -2.0], [-5.0, 0.0]])
    expected = torch.tensor([[0.5**0.5, 0.0, -1.0], [0.0, 0.0, 0.0]], dtype=torch.float64)
    torch.testing.assert_close(representation_cosines(x, y), expected)


@given(
    st.lists(st.floats(-5, 5), min_size=6, max_size=6),
    st.lists(st.floats(-2, 2), min_size=6, max_size=6),
    st.lists(st.floats(0, 1), min_size=3, max_size=3),
)
def test_metrics_are_the_means_over_all_pairs(representation, logit, weights):
    x, d = (torch.tensor(v, dtype=torch.float64).view(2, 3) for v in (representation, logit))
    w = torch.tensor(weights, dtype=torch.float64)
    metrics = interference_metrics(x, d, w, cosine=x / 5)

    def mean(values):
        return float(values.mean())

    expected = {
        "representation": mean(x.abs()),
        "representation_weighted": mean(x.abs() * w),
        "representation_cosine": mean(x.abs() / 5),
        "gradient": mean((x * d).abs()),
        "gradient_weighted": mean((x * d).abs() * w),
        "gradient_signed": mean(x * d),
        "gradient_signed_weighted": mean(x * d * w),
    }
    for name, value in expected.items():
        assert metrics[f"interference/{name}"] == pytest.approx(value, abs=1e-12), name
    ratios = {"reduction", "reduction_to_constant", "gradient_reduction"}
    assert set(metrics) == {f"interference/{name}" for name in set(expected) | ratios}
    assert 0 <= metrics["interference/reduction"] <= 1
    assert 0 <= metrics["interference/gradient_reduction"] <= 1


def test_interference_scales_with_equal_weights():
    x = torch.tensor([[1.0, -2.0, 4.0]])
    none = interference_metrics(x, x, torch.zeros(3))
    assert none["interference/representation_weighted"] == 0
    assert none["interference/gradient_weighted"] == 0
    assert none["interference/reduction"] == none["interference/gradient_reduction"] == 0
    half = interference_metrics(x, None, torch.full((3,), 0.5))
    assert half["interference/reduction"] == 0.5
    assert half["interference/reduction_to_constant"] == 1


def test_interference_falls_below_that_of_a_constant_weight():
    x = torch.tensor([[1.0, 9.0]])
    right = interference_metrics(x, None, torch.tensor([1.0, 0.1]))
    wrong = interference_metrics(x, None, torch.tensor([0.1, 1.0]))
    assert right["interference/reduction_to_constant"] < 1
    assert wrong["interference/reduction_to_constant"] > 1
    assert right["interference/reduction"] == pytest.approx(0.19)


def test_interference_reports_nothing_without_a_pair():
    assert interference_metrics(torch.zeros(0, 3), None, torch.ones(3)) == {}
    positive, targets, _, _, weight = tokens()
    empty = logit_factors(
        *(positive, targets, positive[:0], targets[:0], weight), vocab_size=VOCABULARY
    )
    assert empty.shape == (POSITIVES, 0)


def test_interference_of_orthogonal_states_has_no_reduction():
    metrics = interference_metrics(torch.zeros(2, 2), torch.ones(2, 2), torch.rand(2))
    assert metrics["interference/reduction"] == metrics["interference/gradient_reduction"] == 1
