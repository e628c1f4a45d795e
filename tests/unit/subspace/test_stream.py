"""Streaming groups through micro-batches gives the weights of the whole batch at once."""

from __future__ import annotations

import pytest
import torch

from megatron_resrl.subspace import (
    GroupPlan,
    SubspaceSettings,
    TokenWeightStream,
    WindowLimits,
    make_plan,
    token_weights,
)

LENGTHS = [7, 3, 9, 6, 4, 8, 5, 5, 6, 7, 2, 9]
GROUPS = [5, 5, 5, 5, 2, 2, 2, 2, 9, 9, 9, 9]
POSITIVE = [True, False, True, False, True, True, False, False, False, False, False, False]
SETTINGS = SubspaceSettings(rank=4, max_positive_tokens=100)
HIDDEN = torch.randn(12, 9, 16, generator=torch.Generator().manual_seed(1))
COUNTED = torch.arange(9) < torch.tensor(LENGTHS).unsqueeze(1)

both_methods = pytest.mark.parametrize("method", ["rows", "gram"])


def make(method: str, window_rows: int = 100, **options) -> tuple[GroupPlan, TokenWeightStream]:
    plan = make_plan(
        COUNTED,
        torch.tensor(POSITIVE),
        torch.tensor(GROUPS),
        SETTINGS,
        key=lambda number: 0,
        limits=WindowLimits(window_rows),
    )
    return plan, TokenWeightStream(plan, SETTINGS, method=method, **options)


def feed(stream: TokenWeightStream, rows: list[int]) -> None:
    line, position = COUNTED[rows].nonzero(as_tuple=True)
    row = torch.tensor(rows, dtype=torch.int64)[line]
    stream.add(HIDDEN[row, position], row, position, rows)


@both_methods
@pytest.mark.parametrize("at_once", [False, True])
@pytest.mark.parametrize("window_rows", [1, 30, 100])
@pytest.mark.parametrize("micro_batch_size", [1, 2, 3, 4, 5, 12])
def test_stream_weights_ignore_micro_batches_and_windows(
    micro_batch_size, window_rows, at_once, method
):
    plan, stream = make(method, window_rows, at_once=at_once)
    for start in range(0, 12, micro_batch_size):
        feed(stream, plan.order[start : start + micro_batch_size])
    feed(stream, [])  # micro-batches without responses are harmless
    reports = stream.finish()
    expected = token_weights(HIDDEN, COUNTED, torch.tensor(POSITIVE), torch.tensor(GROUPS), rank=4)
    # Products of other sizes round differently.
    torch.testing.assert_close(stream.weights, expected, atol=1e-5, rtol=0)
    assert [report.skipped for report in reports] == [None, None, "no_positive"]


def test_stream_weighs_a_group_with_its_last_negative_at_once():
    plan, stream = make("rows", at_once=True)
    expected = token_weights(HIDDEN, COUNTED, torch.tensor(POSITIVE), torch.tensor(GROUPS), rank=4)
    complete = set()
    for row in plan.order:
        feed(stream, [row])
        complete.add(row)
        for group in (5, 2):
            negatives = [at for at in range(12) if GROUPS[at] == group and not POSITIVE[at]]
            here = stream.weights[negatives]
            if complete.issuperset(negatives):
                torch.testing.assert_close(here, expected[negatives], atol=1e-5, rtol=0)
            else:
                assert (here == 1).all()


def test_stream_memory_is_that_of_one_window():
    plan, stream = make("rows", window_rows=1)
    for row in plan.order:
        feed(stream, [row])
    rows = max(int(count) for count in plan.sampled_G)
    basis = 8 * (16 * (SETTINGS.rank + 1) + SETTINGS.rank)
    assert stream.peak_bytes == 4 * rows * 16 + basis
    assert stream._collector is None
    assert stream._basis is None


def test_gram_collector_keeps_no_hidden_state():
    plan, stream = make("gram", window_rows=1)
    for row in plan.order:
        feed(stream, [row])
    basis = 8 * (16 * (SETTINGS.rank + 1) + SETTINGS.rank)
    assert stream.peak_bytes == 8 * (16 * 16 + 16 + 1) + basis


def test_stream_refuses_responses_out_of_order():
    plan, stream = make("rows")
    with pytest.raises(ValueError, match="arrived where the plan has"):
        feed(stream, [plan.order[1]])


def test_stream_names_responses_that_never_arrive():
    plan, stream = make("rows")
    feed(stream, plan.order[:-1])
    with pytest.raises(ValueError, match=rf"responses \[{plan.order[-1]}\] of the plan"):
        stream.finish()


@both_methods
@pytest.mark.parametrize("change", ["left out", "twice"])
def test_stream_refuses_tokens_missing_or_given_twice(method, change):
    plan, stream = make(method)
    first = plan.order[0]
    position = torch.arange(LENGTHS[first])
    keep = position[1:] if change == "left out" else torch.cat((position[:1], position))
    row = torch.full_like(keep, first)
    stream.add(HIDDEN[row, keep], row, keep, [first])
    with pytest.raises(ValueError, match="each must be on exactly one rank"):
        feed(stream, plan.order[1:])


def test_stream_names_the_response_of_a_state_not_finite():
    plan, stream = make("rows", name="response {} of the test".format)
    row = plan.order[0]
    position = torch.arange(LENGTHS[row])
    bad = HIDDEN[row, position].clone()
    bad[2, 5] = float("inf")
    stream.add(bad, torch.full_like(position, row), position, [row])
    with pytest.raises(FloatingPointError, match=f"token 2 of response {row} of the test"):
        feed(stream, plan.order[1:])
