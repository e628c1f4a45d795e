"""avg@k and pass@k."""

from __future__ import annotations

import sys
from fractions import Fraction
from itertools import combinations
from math import comb

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron_resrl.evaluation.metrics import avg_at_k, evaluation_metrics, pass_at_k

ROUNDING = 8 * sys.float_info.epsilon
"""Each of at most 7 factors, and the subtraction, rounds once."""


@pytest.mark.parametrize("samples", range(1, 8))
def test_pass_at_k_is_the_share_of_subsets_with_a_correct_sample(samples: int) -> None:
    for correct in range(samples + 1):
        outcomes = [True] * correct + [False] * (samples - correct)
        for k in range(1, samples + 1):
            subsets = list(combinations(outcomes, k))
            share = sum(any(subset) for subset in subsets) / len(subsets)
            assert pass_at_k(samples, correct, k) == pytest.approx(share, abs=ROUNDING)


@given(st.data())
def test_pass_at_k_is_exact_for_many_samples_too(data: st.DataObject) -> None:
    samples = data.draw(st.integers(1, 5000))
    correct = data.draw(st.integers(0, samples))
    k = data.draw(st.integers(1, samples))
    exact = 1 - Fraction(comb(samples - correct, k), comb(samples, k))
    # Two roundings for each of k factors.
    assert pass_at_k(samples, correct, k) == pytest.approx(
        float(exact), abs=2 * k * sys.float_info.epsilon
    )


@given(st.integers(1, 200), st.data())
def test_pass_at_1_is_the_share_of_correct_samples(samples: int, data: st.DataObject) -> None:
    correct = data.draw(st.integers(0, samples))
    assert pass_at_k(samples, correct, 1) == pytest.approx(correct / samples, abs=ROUNDING)


@given(st.integers(2, 200), st.data())
def test_pass_at_k_rises_with_k_and_lies_between_0_and_1(samples: int, data: st.DataObject) -> None:
    correct = data.draw(st.integers(0, samples))
    values = [pass_at_k(samples, correct, k) for k in range(1, samples + 1)]
    assert values == sorted(values)
    assert values[0] >= 0
    assert values[-1] == (1.0 if correct else 0.0)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((4, 2, 5), "pass@5 of 4 samples: give a k from 1 to 4"),
        ((4, 2, 0), "pass@0 of 4 samples: give a k from 1 to 4"),
        ((4, 5, 1), "5 of 4 samples cannot be correct"),
        ((4, -1, 1), "-1 of 4 samples cannot be correct"),
    ],
)
def test_pass_at_k_names_impossible_numbers(arguments: tuple[int, int, int], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        pass_at_k(*arguments)


def test_avg_at_k_is_the_mean_over_samples_then_prompts() -> None:
    assert avg_at_k([[1.0, 0.0], [0.5, 0.5], [0.0, 0.0]]) == pytest.approx(1 / 3, rel=ROUNDING)


def test_evaluation_is_reduced_to_named_metrics() -> None:
    scores = [[1.0, 1.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0], [0.5, -1.0, 0.0, 0.0]]
    assert evaluation_metrics(scores, (1, 2, 4)) == pytest.approx(
        {
            "avg@4": (0.5 + 0 - 0.125) / 3,
            "pass@1": (1 / 2 + 0 + 1 / 4) / 3,
            "pass@2": (5 / 6 + 0 + 1 / 2) / 3,
            "pass@4": 2 / 3,
            "pass^2": (1 / 6 + 0 + 0) / 3,
            "pass^4": 0,
        },
        abs=ROUNDING,
    )


@pytest.mark.parametrize("scores", [[], [[]], [[1.0], []]])
def test_avg_at_k_refuses_an_empty_set(scores: list[list[float]]) -> None:
    with pytest.raises(ValueError, match="at least one prompt, and at least one sample of each"):
        avg_at_k(scores)


@pytest.mark.parametrize(
    ("scores", "said"),
    [
        ([], "at least one prompt"),
        ([[], []], "at least one sample"),
        ([[1.0], [1.0, 0.0]], r"equally many samples, found \[1, 2\]"),
    ],
)
def test_avg_at_k_refuses_unequal_numbers_of_samples(scores: list[list[float]], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        evaluation_metrics(scores, (1,))


def test_pass_at_k_refuses_a_k_above_the_samples() -> None:
    with pytest.raises(ValueError, match="pass@3 of 2 samples: give a k from 1 to 2"):
        evaluation_metrics([[1.0, 0.0]], (1, 3))
