"""Which groups make up a step under dynamic sampling."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from megatron_resrl.rollout.selection import DynamicSampling

signals = st.lists(st.booleans(), min_size=1, max_size=6)
RULE = DynamicSampling(max_refills=3)


def test_selection_fills_open_places_in_order_and_keeps_the_rest():
    rounds = [[True, False, False, False], [False, True, False], [True, False]]
    assert RULE.choose(1, rounds) == [(0, 0), (1, 1), (2, 0), (0, 3)]


@given(signals, st.lists(signals, max_size=3))
def test_selection_has_one_group_per_prompt_and_wastes_no_signal(first, further):
    rounds = [first, *further]
    chosen = RULE.choose(1, rounds)
    assert len(set(chosen)) == len(chosen) == len(first)
    with_signal = sum(rounds[number][index] for number, index in chosen)
    assert with_signal == min(len(first), sum(map(sum, rounds)))
    assert all(chosen[place] == (0, place) for place, signal in enumerate(first) if signal)


def test_selection_refills_as_many_places_as_are_open():
    first = [True, False, False, False]
    assert RULE.further_prompts(1, [first]) == 3
    assert RULE.further_prompts(1, [first, [True, False, True]]) == 1
    assert RULE.further_prompts(1, [first, [True, True, True]]) == 0


def test_selection_stops_after_max_refills():
    empty = [[False, False]] * 4
    assert [RULE.further_prompts(1, empty[:rounds]) for rounds in (1, 2, 3, 4)] == [2, 2, 2, 0]
    assert DynamicSampling(max_refills=0).further_prompts(1, [[False]]) == 0
