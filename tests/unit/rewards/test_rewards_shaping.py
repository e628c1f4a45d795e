"""Length scaling and the penalty for over-long responses."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron_resrl.rewards.shaping import length_scaled, overlong_penalty

lengths = st.integers(0, 10_000)


@pytest.mark.parametrize(
    ("tokens", "reward"),
    [(0, 1.0), (3500, 1.0), (3798, 0.85), (4096, 0.7), (4097, 0.7), (10**6, 0.7)],
)
def test_length_scaled_is_linear_from_3500_to_4096_tokens(tokens: int, reward: float) -> None:
    assert length_scaled(1.0, tokens) == pytest.approx(reward, rel=1e-15)  # one rounding or two


@given(st.floats(-10, 0), lengths)
def test_length_scaled_leaves_other_than_positive_scores(score: float, tokens: int) -> None:
    assert length_scaled(score, tokens) == score


@given(st.floats(0.001, 10), lengths, lengths)
def test_length_scaled_falls_with_length_and_keeps_the_sign(
    score: float, one: int, other: int
) -> None:
    shorter, longer = sorted((one, other))
    low, high = length_scaled(score, longer), length_scaled(score, shorter)
    assert 0.7 * score <= low <= high <= score


def test_length_scaled_respects_other_settings() -> None:
    settings = {"full_until": 0, "floor_at": 10, "floor": 0.5}
    assert [length_scaled(2.0, n, **settings) for n in (0, 5, 10, 11)] == [2.0, 1.5, 1.0, 1.0]


@pytest.mark.parametrize(
    ("tokens", "penalty"),
    [(0, 0.0), (16384, 0.0), (18432, -0.5), (20480, -1.0), (20481, -1.0)],
)
def test_overlong_penalty_is_linear_over_the_buffer(tokens, penalty):
    # L_max 20480 and L_cache 4096 are those of the paper's experiments; powers of two are exact.
    assert overlong_penalty(tokens, limit=20480, buffer=4096, penalty=1.0) == penalty


@given(lengths, lengths, st.floats(0, 10))
def test_overlong_penalty_never_falls_with_length(one: int, other: int, penalty: float) -> None:
    shorter, longer = sorted((one, other))
    at = {"limit": 4096, "buffer": 1024, "penalty": penalty}
    assert -penalty <= overlong_penalty(longer, **at) <= overlong_penalty(shorter, **at) <= 0
