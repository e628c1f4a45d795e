"""Which groups make a step under dynamic sampling."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from megatron_resrl.rollout.collector import choose_groups

signals = st.lists(st.booleans(), min_size=1, max_size=6)


def test_open_places_go_to_the_next_groups_with_signal_and_the_rest_keep_their_first():
    chosen = choose_groups([[True, False, False, False], [False, True, False], [True, False]])
    assert chosen == [(0, 0), (1, 1), (2, 0), (0, 3)]


@given(signals, st.lists(signals, max_size=3))
def test_every_step_has_as_many_distinct_groups_as_prompts_and_wastes_no_signal(first, further):
    rounds = [first, *further]
    chosen = choose_groups(rounds)
    assert len(set(chosen)) == len(chosen) == len(first)
    taught = sum(rounds[number][index] for number, index in chosen)
    assert taught == min(len(first), sum(map(sum, rounds)))
    assert all(chosen[place] == (0, place) for place, signal in enumerate(first) if signal)
