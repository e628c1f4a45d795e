"""Bins of sequences."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron_resrl.policy.prefixes import FedLength
from megatron_resrl.policy.token_budget import Fed, MicroBatchLimit, pack


@given(st.lists(st.integers(1, 50), max_size=40), st.integers(50, 120))
def test_pack_puts_each_sequence_into_one_bin_with_room(lengths, budget):
    bins = pack(list(map(FedLength, lengths)), budget)
    assert sorted(index for each in bins for index in each) == list(range(len(lengths)))
    assert all(sum(lengths[index] for index in each) <= budget for each in bins)
    # Two bins that are at most half full would be one.
    assert len(bins) <= 2 * math.ceil(sum(lengths) / budget)


def test_pack_fills_bins_with_the_longest_first():
    assert pack(list(map(FedLength, [3, 9, 4, 6, 1])), 10) == [(0,), (1, 4), (2, 3)]


def test_pack_refuses_a_sequence_above_the_budget():
    with pytest.raises(ValueError, match="sequence 1 has 11 tokens, the budget is 10"):
        pack([FedLength(3), FedLength(11)], 10)


@given(
    st.lists(st.lists(st.integers(1, 30), min_size=1, max_size=3), max_size=15),
    st.booleans(),
    st.sampled_from([1, 4, 8]),
)
def test_cut_keeps_limits_and_what_belongs_together(items, packed, multiple):
    lengths = [length for item in items for length in item]
    numbers = iter(range(len(lengths)))
    together = [tuple(next(numbers) for _ in item) for item in items]
    limit, fed = MicroBatchLimit(4, 96, packed, multiple), list(map(FedLength, lengths))
    for parts in (limit.cut(together, fed), limit.cut_in_order(together, fed)):
        assert sorted(row for part in parts for row in part) == list(range(len(lengths)))
        for part in parts:
            own = [-(-lengths[row] // multiple) * multiple for row in part]
            assert len(part) <= 4
            assert (sum(own) if packed else len(own) * max(own)) <= 96
            assert all(set(part) >= set(item) or not set(part) & set(item) for item in together)
    assert [row for part in parts for row in part] == list(range(len(lengths)))


def test_cut_packs_the_longest_first_and_counts_padding():
    lengths = list(map(FedLength, (9, 3, 4, 6)))
    singles = [(index,) for index in range(4)]
    padded = MicroBatchLimit(9, 12)
    assert padded.cut(singles, lengths) == [(0,), (3, 2), (1,)]
    assert padded.fed([(0,), (3, 2), (1,)], lengths) == Fed(positions=24, tokens=22)
    packed = MicroBatchLimit(9, 12, packed=True)
    assert packed.cut(singles, lengths) == [(0, 1), (3, 2)]
    assert packed.fed([(0, 1), (3, 2)], lengths) == Fed(positions=22, tokens=22)
    # A sequence above the limit has a micro-batch of its own.
    assert packed.cut([(0,), (1,)], [FedLength(20), FedLength(5)]) == [(0,), (1,)]


def test_cut_without_a_budget_keeps_neighbours():
    lengths = list(map(FedLength, (9, 1, 1)))
    assert MicroBatchLimit(2).cut([(0,), (1,), (2,)], lengths) == [(0, 1), (2,)]


def test_cut_keeps_sequences_of_a_prefix_together():
    # Two groups of four with 8 tokens of prefix, which first-fit decreasing would tear apart.
    own = (9, 6, 4, 1)
    lengths = [FedLength(8 + tokens, prefix, 8) for prefix in (0, 1) for tokens in own]
    limit = MicroBatchLimit(9, 28, packed=True, shared=True)
    parts = limit.cut([(row,) for row in range(8)], lengths)
    assert parts == [(0, 1, 2, 3), (4, 5, 6, 7)]
    assert limit.fed(parts, lengths) == Fed(positions=56, tokens=56, shared=48)
    # A group that is too large is cut, and its prefix repeated.
    small = MicroBatchLimit(9, 20, packed=True, shared=True)
    parts = small.cut([(row,) for row in range(4)], lengths[:4])
    assert parts == [(1, 2, 3), (0,)]
    assert small.fed(parts, lengths) == Fed(positions=36, tokens=36, shared=16)
    assert not small.allows(lengths[:4])
    assert limit.allows(lengths[:4])


def test_cut_in_order_counts_a_shared_prefix_once():
    lengths = [FedLength(10, 0, 8), FedLength(12, 0, 8), FedLength(9)]
    limit = MicroBatchLimit(9, 14, packed=True, shared=True)
    assert limit.cut_in_order([(0,), (1,), (2,)], lengths) == [(0, 1), (2,)]
