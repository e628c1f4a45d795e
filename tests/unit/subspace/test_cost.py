from __future__ import annotations

import math
from dataclasses import asdict, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron_resrl.subspace.cost import (
    H100_CLUSTER,
    H100_NODE,
    METHODS,
    MachineRates,
    PassShape,
    choose_method,
    cost_of,
    describe_choice,
    krylov_columns,
    measure_rates,
)

# Qwen3-4B on one node of 8 GPUs: 64 groups, one per rank and window.
NODE = PassShape(
    groups=64,
    positive_tokens=4096,
    negative_tokens=4096,
    hidden_size=2560,
    rank=64,
    itemsize=2,
    ranks=8,
    copies=1,
    window=8,
)
SIZES = st.builds(
    PassShape,
    groups=st.integers(1, 100),
    positive_tokens=st.integers(1, 10_000),
    negative_tokens=st.integers(0, 10_000),
    hidden_size=st.integers(1, 10_000),
    rank=st.integers(1, 128),
    itemsize=st.sampled_from([2, 4]),
    ranks=st.integers(1, 16),
    copies=st.integers(1, 8),
    window=st.integers(1, 32),
)


def test_rows_to_their_owners_send_what_was_computed_by_hand():
    # 64 groups x 512 tokens x 2560 x 2 bytes, 7 of 8 groups belong to another rank.
    assert cost_of("rows", NODE, H100_NODE).exchange_bytes == 146_800_640
    large = replace(NODE, hidden_size=8192)
    assert cost_of("rows", large, H100_NODE).exchange_bytes == 469_762_048
    short = replace(NODE, positive_tokens=1024, hidden_size=5120)
    assert cost_of("rows", short, H100_NODE).exchange_bytes == 73_400_320


def test_scatter_matrices_send_what_was_computed_by_hand():
    # A full float32 matrix would send 64 x 2560^2 x 4 bytes x 7/8 = 1468 MB. Ours is float64, of
    # which the upper triangle travels in panels of 256: 2560 x 2816 / 2 elements.
    full_float32 = 64 * 2560**2 * 4 * 7 // 8
    assert full_float32 == 1_468_006_400
    reduced = cost_of("gram", NODE, H100_NODE).exchange_bytes
    assert reduced == 64 * (2560 * 2816 // 2) * 8 * 7 // 8 == 1_614_807_040
    # One group at a time is all-gathered: every rank sends its matrix to 7 others.
    gathered = cost_of("gram", replace(NODE, window=1), H100_NODE).exchange_bytes
    assert gathered == 8 * reduced


def test_bases_and_residuals_send_what_was_computed_by_hand():
    for method in METHODS:
        cost = cost_of(method, NODE, H100_NODE)
        # 8 groups of this rank x 2560 x (64 directions + mean) x 8 bytes to 7 others.
        assert cost.basis_bytes == 8 * 2560 * 65 * 8 * 7
        # A ring all-reduce of 8 bytes per token.
        assert cost.residual_bytes == 2 * 8 * 64 * 8192 * 7 // 8
        assert cost.bytes_sent == cost.exchange_bytes + cost.basis_bytes + cost.residual_bytes


def test_operations_and_memory_are_what_was_computed_by_hand():
    rows, gram = (cost_of(method, NODE, H100_NODE) for method in METHODS)
    scoring = 2 * 64 * 512 * 2560 * 64
    assert krylov_columns(NODE) == 288
    assert rows.flops == 8 * (4 * 4096 * 2560 * 288 + 4 * 2560 * 288**2)
    assert rows.float64_flops == scoring
    assert gram.flops == 0
    added = 64 * 512 * 2560 * 2816
    solved = 8 * (2 * 2560**2 * 288 + 4 * 2560 * 288**2)
    assert gram.float64_flops == added + solved + scoring
    bases = 8 * 2560 * 65 * 8
    held, owned, space = 8 * 512 * 2560 * 2, 4096 * 2560 * (2 + 4), 2 * 4 * 2560 * 288
    assert rows.peak_bytes == held + owned + space + bases
    matrices, panels = (8 + 1) * 2560**2 * 8, 8 * 256 * 2560 * 8
    assert gram.peak_bytes == matrices + panels + 2 * space + bases


@given(SIZES, st.sampled_from(METHODS), st.sampled_from(["node", "cluster"]), st.data())
def test_nothing_becomes_cheaper_when_a_size_grows(shape, method, rates, data):
    rates = {"node": H100_NODE, "cluster": H100_CLUSTER}[rates]
    name = data.draw(
        st.sampled_from(["groups", "positive_tokens", "negative_tokens", "hidden_size", "rank"])
    )
    larger = replace(shape, **{name: getattr(shape, name) + data.draw(st.integers(1, 5000))})
    small, large = cost_of(method, shape, rates), cost_of(method, larger, rates)
    for field, value in asdict(small).items():
        assert value <= getattr(large, field), field


@given(SIZES, st.sampled_from(METHODS))
def test_a_rank_alone_sends_nothing(shape, method):
    cost = cost_of(method, replace(shape, ranks=1, copies=1), H100_NODE)
    assert cost.bytes_sent == 0
    assert cost.communication_seconds == 0


@given(SIZES, st.sampled_from(METHODS))
def test_copies_send_no_rows_or_matrices_to_each_other(shape, method):
    cost = cost_of(method, replace(shape, ranks=1), H100_NODE)
    assert cost.exchange_bytes == cost.residual_bytes == 0


@pytest.mark.parametrize("hidden_size", [2048, 2560, 5120, 8192])
@pytest.mark.parametrize("rates", [H100_NODE, H100_CLUSTER])
def test_auto_sends_rows_below_two_tokens_per_hidden_dimension(hidden_size, rates):
    for tokens in (64, 512, hidden_size, 2 * hidden_size):
        shape = replace(NODE, hidden_size=hidden_size, positive_tokens=tokens)
        assert choose_method(shape, rates)[0] == "rows"


@pytest.mark.parametrize("hidden_size", [576, 1024, 2048])
@pytest.mark.parametrize("rates", [H100_NODE, H100_CLUSTER])
def test_auto_makes_matrices_far_above_two_tokens_per_hidden_dimension(hidden_size, rates):
    shape = replace(NODE, hidden_size=hidden_size, positive_tokens=32 * hidden_size)
    assert choose_method(shape, rates)[0] == "gram"


def test_auto_sends_rows_at_any_length_where_the_matrix_costs_more_than_all_products():
    # The matrix takes N H^2 operations, the products 4 N H 288: 8192 is far beyond 4 x 288.
    for tokens in (4096, 65_536, 1 << 20):
        shape = replace(NODE, hidden_size=8192, positive_tokens=tokens)
        assert choose_method(shape, H100_NODE)[0] == "rows"


@given(SIZES)
def test_auto_picks_the_shorter_time(shape):
    method, costs = choose_method(shape, H100_NODE)
    assert set(costs) == set(METHODS)
    assert costs[method].seconds == min(cost.seconds for cost in costs.values())


def test_the_log_line_names_the_choice_first_and_its_numbers():
    line = describe_choice(*choose_method(NODE, H100_NODE))
    assert line.startswith("subspace method rows; predicted per rank and pass: rows ")
    assert "228.7 MB sent" in line
    assert "; gram " in line
    assert "1.697 GB sent" in line
    assert "\n" not in line


def test_an_impossible_size_is_named():
    with pytest.raises(ValueError, match="ranks is 0, expected at least 1"):
        replace(NODE, ranks=0)
    with pytest.raises(ValueError, match="'columns', expected one of rows, gram"):
        cost_of("columns", NODE, H100_NODE)


def test_rates_of_this_machine_are_positive_and_a_lone_rank_needs_no_link():
    rates = measure_rates("cpu")
    assert all(value > 0 for name, value in asdict(rates).items() if name != "latency")
    assert rates.link_bandwidth == math.inf
    assert rates.latency == 0
    assert isinstance(rates, MachineRates)
    assert cost_of("rows", replace(NODE, ranks=1), rates).seconds > 0
