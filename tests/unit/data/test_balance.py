"""Groups are dealt whole, evenly in number and nearly evenly in tokens."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron_resrl.data.balance import deal_groups


@given(st.integers(1, 5), st.integers(1, 6), st.data())
def test_balance_gives_whole_groups_and_every_rank_as_many(
    ranks: int, per_rank: int, data: st.DataObject
) -> None:
    size = ranks * per_rank
    tokens = data.draw(st.lists(st.integers(0, 1000), min_size=size, max_size=size))
    hands = deal_groups(tokens, ranks)
    assert sorted(group for hand in hands for group in hand) == list(range(size))
    assert {len(hand) for hand in hands} == {per_rank}
    assert all(hand == sorted(hand) for hand in hands)


def test_balance_spreads_long_groups_and_fills_with_short() -> None:
    tokens = [900, 800, 100, 200, 700, 600, 300, 400]
    hands = deal_groups(tokens, 2)
    loads = [sum(tokens[group] for group in hand) for hand in hands]
    assert loads == [2000, 2000]


def test_balance_deals_equal_groups_alike_every_time() -> None:
    assert deal_groups([5] * 6, 3) == [[0, 3], [1, 4], [2, 5]]


def test_balance_refuses_groups_that_do_not_divide_evenly() -> None:
    with pytest.raises(ValueError, match=r"5 groups .* 2 data-parallel ranks"):
        deal_groups([1] * 5, 2)
