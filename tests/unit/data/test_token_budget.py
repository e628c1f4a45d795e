"""Bins of sequences."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron_resrl.data.token_budget import pack


@given(st.lists(st.integers(1, 50), max_size=40), st.integers(50, 120))
def test_pack_puts_each_sequence_into_one_bin_with_room(lengths, budget):
    bins = pack(lengths, budget)
    assert sorted(index for each in bins for index in each) == list(range(len(lengths)))
    assert all(sum(lengths[index] for index in each) <= budget for each in bins)
    # Two bins that are at most half full would be one.
    assert len(bins) <= 2 * math.ceil(sum(lengths) / budget)


def test_pack_fills_bins_with_the_longest_first():
    assert pack([3, 9, 4, 6, 1], 10) == [(0,), (1, 4), (2, 3)]


def test_pack_refuses_a_sequence_above_the_budget():
    with pytest.raises(ValueError, match="sequence 1 has 11 tokens, the budget is 10"):
        pack([3, 11], 10)
