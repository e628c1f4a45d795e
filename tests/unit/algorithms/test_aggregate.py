"""What a token counts in the loss."""

from __future__ import annotations

from typing import get_args

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_resrl.algorithms import Aggregation, token_coefficients

ROUNDING = 1e-12
"""float64: sums of at most 2000 numbers that add up to at most 1."""

some_lengths = st.lists(st.integers(0, 200), min_size=1, max_size=20).filter(any)
quickly = settings(max_examples=50, deadline=None)


def coefficients(lengths: list[int], aggregation: str) -> torch.Tensor:
    """Of a mini-batch that is all here."""
    return token_coefficients(
        torch.tensor(lengths),
        aggregation=aggregation,
        global_tokens=sum(lengths),
        global_responses=len(lengths),
        max_length=200,
    )


@quickly
@given(some_lengths)
def test_sequence_mean_adds_up_to_the_share_with_tokens(lengths) -> None:
    total = (coefficients(lengths, "sequence_mean") * torch.tensor(lengths)).sum()
    present = sum(length > 0 for length in lengths)
    assert abs(float(total) - present / len(lengths)) < ROUNDING


@quickly
@given(some_lengths)
def test_token_coefficients_token_mean_sums_to_one(lengths) -> None:
    total = (coefficients(lengths, "token_mean") * torch.tensor(lengths)).sum()
    assert abs(float(total) - 1) < ROUNDING


@quickly
@given(some_lengths, st.sampled_from(get_args(Aggregation)), st.data())
def test_token_coefficients_of_shares_are_those_of_the_whole(lengths, how, data) -> None:
    cut = data.draw(st.integers(0, len(lengths)))
    parts = [
        token_coefficients(
            torch.tensor(part, dtype=torch.int64),
            aggregation=how,
            global_tokens=sum(lengths),
            global_responses=len(lengths),
            max_length=200,
        )
        for part in (lengths[:cut], lengths[cut:])
    ]
    assert torch.equal(torch.cat(parts), coefficients(lengths, how))


@quickly
@given(
    some_lengths,
    st.sampled_from(get_args(Aggregation)),
    st.randoms(use_true_random=False),
)
def test_token_coefficients_follow_their_responses(lengths, how, random) -> None:
    order = list(range(len(lengths)))
    random.shuffle(order)
    shuffled = coefficients([lengths[index] for index in order], how)
    assert torch.equal(shuffled, coefficients(lengths, how)[order])


def test_token_coefficients_equal_a_hand_computation() -> None:
    by_sequence, by_token, by_constant = (
        coefficients([4, 1, 0], how) for how in ("sequence_mean", "token_mean", "constant_length")
    )
    assert by_constant.tolist() == [1 / 600, 1 / 600, 0]
    assert by_sequence.tolist() == [1 / 12, 1 / 3, 0]
    assert by_token.tolist() == [1 / 5, 1 / 5, 0]
    assert by_sequence.dtype == by_token.dtype == torch.float64


def test_aggregate_weighs_responses_or_tokens_alike() -> None:
    lengths = torch.tensor([100, 1])
    by_sequence = coefficients(lengths.tolist(), "sequence_mean") * lengths
    by_token = coefficients(lengths.tolist(), "token_mean") * lengths
    assert float(by_sequence[0] / by_sequence[1]) == pytest.approx(1, rel=ROUNDING)
    assert float(by_token[0] / by_token[1]) == pytest.approx(100, rel=ROUNDING)


@pytest.mark.parametrize(
    ("aggregation", "tokens", "responses", "message"),
    [
        ("token_mean", 0, 4, r"global_tokens is 0.*token_mean"),
        ("sequence_mean", 9, 0, r"global_responses is 0.*sequence_mean"),
        ("mean", 9, 4, r"aggregation is 'mean'.*token_mean, sequence_mean"),
        ("constant_length", 9, 4, r"max_length is None.*constant_length"),
    ],
)
def test_token_coefficients_refuse_what_they_cannot_aggregate(
    aggregation, tokens, responses, message
) -> None:
    with pytest.raises(ValueError, match=message):
        token_coefficients(
            torch.zeros(0, dtype=torch.int64),
            aggregation=aggregation,
            global_tokens=tokens,
            global_responses=responses,
        )


@pytest.mark.parametrize(
    ("tokens", "responses", "message"),
    [
        (6, 2, r"global_tokens is 6, but the 2 responses here have 7"),
        (7, 1, r"global_responses is 1, but 2 responses are here"),
    ],
)
@pytest.mark.parametrize("aggregation", ["token_mean", "sequence_mean"])
def test_token_coefficients_refuse_denominators_below_the_share(
    aggregation, tokens, responses, message
) -> None:
    with pytest.raises(ValueError, match=message):
        token_coefficients(
            torch.tensor([3, 4]),
            aggregation=aggregation,
            global_tokens=tokens,
            global_responses=responses,
        )


@pytest.mark.parametrize(
    ("lengths", "message"),
    [
        (torch.tensor([3, -1]), r"response_lengths\[1\] is -1"),
        (torch.tensor([3.0, 1.0]), r"response_lengths has dtype torch.float32"),
        (torch.tensor([[3, 1]]), r"response_lengths has shape \[1, 2\]"),
    ],
)
def test_token_coefficients_refuse_lengths_that_are_no_counts(lengths, message) -> None:
    with pytest.raises(ValueError, match=message):
        token_coefficients(lengths, aggregation="token_mean", global_tokens=9, global_responses=2)
