from __future__ import annotations

from collections.abc import Collection

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_resrl.subspace import (
    GroupPlan,
    SubspaceSettings,
    WindowLimits,
    make_plan,
    sampling_key,
)


def plan_of(
    lengths: list[int],
    positive: list[bool],
    group: list[int],
    *,
    budget: int = 4096,
    window_rows: int = 10**6,
    window_groups: int | None = None,
    first: Collection[int] = (),
    seed: int = 0,
    rank: int = 2,
) -> GroupPlan:
    counted = torch.arange(max(lengths)) < torch.tensor(lengths).unsqueeze(1)
    return make_plan(
        counted,
        torch.tensor(positive),
        torch.tensor(group),
        SubspaceSettings(rank=rank, max_positive_tokens=budget),
        key=lambda number: sampling_key(seed, 1, number),
        limits=WindowLimits(window_rows, window_groups, first),
    )


def test_make_plan_uses_no_tokens_of_skipped_groups():
    plan = plan_of([5, 3, 4, 9, 2, 3], [True, False, False, True, True, False], [7, 7, 2, 2, 4, 4])
    assert plan.group_ids == (2, 4, 7)
    assert plan.skipped == (None, "few_positive_tokens", None)
    assert plan.sampled_G.tolist() == [9, 0, 5]
    assert plan.weighted_G.tolist() == [4, 0, 3]
    assert plan.sampled_BT.sum(1).tolist() == [5, 0, 0, 9, 0, 0]
    assert plan.weighted_BT.sum(1).tolist() == [0, 3, 4, 0, 0, 0]
    assert plan.positive_tokens == (9, 2, 5)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    responses=st.lists(
        st.tuples(st.integers(1, 12), st.booleans(), st.integers(0, 3)), min_size=1, max_size=14
    ),
    budget=st.integers(4, 20),
    window_rows=st.integers(1, 40),
    window_groups=st.none() | st.integers(1, 3),
)
def test_make_plan_orders_positives_before_negatives(responses, budget, window_rows, window_groups):
    lengths, positive, group = (list(column) for column in zip(*responses, strict=True))
    limits = {"window_rows": window_rows, "window_groups": window_groups}
    plan = plan_of(lengths, positive, group, budget=budget, **limits)
    assert sorted(plan.order) == list(range(len(lengths)))
    seen = [index for window in plan.windows for index in window.groups]
    assert sorted(seen) == list(range(len(plan.group_ids)))
    for window in plan.windows:
        assert window_groups is None or len(window.groups) <= window_groups
        sizes = [int(plan.sampled_G[index]) for index in window.groups]
        assert len(sizes) == 1 or len(sizes) * max(*sizes, 2) <= window_rows
        late = plan.sampled_BT[list(window.negatives)]
        early = plan.weighted_BT[list(window.positives)]
        assert not late.any()
        assert not early.any()
    for index in range(len(plan.group_ids)):
        inside = (plan.group_B == index).unsqueeze(1)
        for mask, counts in (
            (plan.sampled_BT, plan.sampled_G),
            (plan.weighted_BT, plan.weighted_G),
        ):
            columns = plan.index_in_group_BT[mask & inside].tolist()
            assert columns == list(range(int(counts[index])))
        assert int(plan.sampled_G[index]) <= budget


def test_make_plan_samples_the_budget_by_the_key_alone():
    arguments = [60, 50, 9], [True, True, False], [3, 3, 3]
    plan = plan_of(*arguments, budget=30, seed=5)
    assert plan.sampled_G.tolist() == [30]
    assert plan.positive_tokens == (110,)
    assert torch.equal(plan_of(*arguments, budget=30, seed=5).sampled_BT, plan.sampled_BT)
    assert not torch.equal(plan_of(*arguments, budget=30, seed=6).sampled_BT, plan.sampled_BT)
    # Another group in the pool changes nothing.
    more = plan_of([60, 50, 9, 7, 7], [True, True, False, True, False], [3, 3, 3, 1, 1],
                   budget=30, seed=5)  # fmt: skip
    assert torch.equal(more.sampled_BT[:3], plan.sampled_BT)


def test_make_plan_samples_tokens_uniformly():
    hits = torch.zeros(2, 40)
    for seed in range(300):
        hits += plan_of(
            [40, 40, 4], [True, True, False], [0, 0, 0], budget=20, seed=seed
        ).sampled_BT[:2]
    # 75 expected of each token; five standard deviations of a binomial are 38.
    assert hits.min() > 37
    assert hits.max() < 113


def test_plan_windows_have_groups_of_one_size():
    plan = plan_of(
        [5, 1, 40, 1, 6, 1, 38, 1], [True, False] * 4, [0, 0, 1, 1, 2, 2, 3, 3], window_rows=80
    )
    assert [window.groups for window in plan.windows] == [(1, 3), (2, 0)]


def test_sampling_key_is_stable_and_distinct():
    keys = {sampling_key(s, t, g) for s in range(3) for t in range(5) for g in range(7)}
    assert len(keys) == 105
    assert sampling_key(0, 0, 0) == 759_540_517_790_923_586


def test_plan_leaves_out_masked_tokens():
    counted = torch.ones(2, 6, dtype=torch.bool)
    counted[:, 2:4] = False
    plan = make_plan(
        counted,
        torch.tensor([True, False]),
        torch.zeros(2, dtype=torch.int64),
        SubspaceSettings(),
        key=lambda number: 0,
        limits=WindowLimits(100),
    )
    assert not (plan.sampled_BT | plan.weighted_BT)[:, 2:4].any()
    assert (plan.sampled_G.tolist(), plan.weighted_G.tolist()) == ([4], [4])


@pytest.mark.parametrize("rows", [1, 7])
def test_make_plan_gives_a_large_group_its_own_window(rows):
    plan = plan_of([50, 1, 50, 1], [True, False] * 2, [0, 0, 1, 1], window_rows=rows)
    assert [window.groups for window in plan.windows] == [(0,), (1,)]


def test_make_plan_lets_some_groups_arrive_first():
    lengths, positive = [5, 1, 40, 1, 6, 1, 38, 1], [True, False] * 4
    plan = plan_of(lengths, positive, [3, 3, 8, 8, 5, 5, 9, 9], first={5, 9})
    assert plan.order == [6, 4, 7, 5, 2, 0, 3, 1]
    assert [len(window.groups) for window in plan.windows] == [2, 2]
