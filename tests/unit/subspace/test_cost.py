from __future__ import annotations

from dataclasses import asdict, replace

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from megatron_resrl.subspace.basis import rows_work
from megatron_resrl.subspace.cost import (
    METHODS,
    PassShape,
    choose_method,
    cost_of,
    describe_choice,
)
from megatron_resrl.subspace.rates import H100_CLUSTER, H100_NODE

# Qwen3-4B on one node of 8 GPUs: 64 groups, one per rank and window.
NODE = PassShape(
    groups=64,
    positive_tokens=4096,
    negative_tokens=4096,
    hidden_size=2560,
    rank=64,
    itemsize=2,
    ranks=8,
    window_rows=8 * 4096,
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
    window_rows=st.integers(1, 100_000),
)


def test_rows_to_their_owners_send_what_was_computed_by_hand():
    # 56 of 64 groups belong to another rank: 512 tokens of each, with their places.
    assert cost_of("rows", NODE, H100_NODE).exchange_bytes == 56 * 512 * (2560 * 2 + 8)
    large = replace(NODE, hidden_size=8192)
    assert cost_of("rows", large, H100_NODE).exchange_bytes == 56 * 512 * (8192 * 2 + 8)
    # Windows of 32 groups, of which a rank owns 4.
    short = replace(NODE, positive_tokens=1024, hidden_size=5120)
    assert cost_of("rows", short, H100_NODE).exchange_bytes == 56 * 128 * (5120 * 2 + 8)


def test_scatter_matrices_send_what_was_computed_by_hand():
    # Float64, of which the upper triangle travels in panels of 256: 2560 x 2816 / 2 elements; the
    # count and mean of every group go to 7 others.
    means = 64 * 8 * 2561 * 7
    reduced = cost_of("gram", NODE, H100_NODE).exchange_bytes
    assert reduced == 56 * (2560 * 2816 // 2) * 8 + means
    # One group at a time is all-gathered: every rank sends its matrix to 7 others.
    single = cost_of("gram", replace(NODE, window_rows=4096), H100_NODE)
    assert single.exchange_bytes == 64 * 7 * (2560 * 2816 // 2) * 8 + means
    assert single.basis_bytes == 0  # every rank has made it itself


def test_a_last_window_of_one_group_is_gathered_by_all():
    seventeen = replace(NODE, groups=17)
    matrix, means = 8 * 2560 * 2816 // 2, 8 * 2561 * 7
    cost = cost_of("gram", seventeen, H100_NODE)
    assert cost.exchange_bytes == (7 + 7 + 7) * matrix + 17 * means
    assert cost.basis_bytes == 2 * 8 * 2561 * 65 * 7


def test_bases_and_residuals_send_what_was_computed_by_hand():
    for method in METHODS:
        cost = cost_of(method, NODE, H100_NODE)
        # 8 groups of this rank x (2560 + 1) x (64 directions + mean) x 8 bytes to 7 others.
        assert cost.basis_bytes == 8 * 2561 * 65 * 8 * 7
        # A ring all-reduce of 8 bytes per negative token.
        assert cost.residual_bytes == 2 * 8 * 64 * 4096 * 7 // 8
        assert cost.bytes_sent == cost.exchange_bytes + cost.basis_bytes + cost.residual_bytes


def test_operations_and_memory_are_what_was_computed_by_hand():
    rows, gram = (cost_of(method, NODE, H100_NODE) for method in METHODS)
    scoring = 2 * 64 * 512 * 2560 * 64
    around = 4 * 2560 * 352**2
    assert rows.flops == 8 * (4 * 4096 * 2560 * 352 + around)
    assert rows.float64_flops == 8 * around + scoring
    assert gram.flops == 0
    added = 64 * 512 * 2560 * 2816
    assert gram.float64_flops == added + 8 * (2 * 2560**2 * 352 + 2 * around) + scoring
    bases, space = 8 * 2561 * 65 * 8, 352 * (4 * 4096 + 12 * 2560)
    assert rows.peak_bytes == 4096 * 2560 * 4 + space + bases
    matrices, panels = (8 + 4) * 2560**2 * 8, 8 * 256 * 2560 * 8
    assert gram.peak_bytes == matrices + panels + 16 * 2560 * 352 + bases


@pytest.mark.parametrize(
    ("tokens", "hidden_size", "form"),
    [(256, 2560, "full"), (1024, 5120, "gram"), (4096, 8192, "rows")],
)
def test_rows_cost_what_the_form_costs_that_the_pass_takes(tokens, hidden_size, form):
    alone = replace(NODE, groups=1, ranks=1, negative_tokens=0, window_rows=tokens)
    shape = replace(alone, positive_tokens=tokens, hidden_size=hidden_size)
    found, work = rows_work(tokens, hidden_size, shape.rank)
    cost = cost_of("rows", shape, H100_NODE)
    assert found == form
    assert (cost.flops, cost.float64_flops) == (work.products + work.narrow, work.double)


def test_windows_hold_what_the_pass_holds():
    assert (NODE.window("rows"), NODE.window("gram")) == (8, 8)
    short = replace(NODE, positive_tokens=1000)
    assert (short.window("rows"), short.window("gram")) == (32, 8)
    # A basis of 64 directions counts as 64 rows.
    assert replace(NODE, positive_tokens=4, window_rows=640).window("rows") == 10
    assert replace(NODE, positive_tokens=4).window("rows") == NODE.groups
    assert replace(NODE, positive_tokens=100_000).window("rows") == 1


@given(SIZES, st.sampled_from(METHODS), st.integers(1, 5), st.integers(0, 5000))
def test_nothing_becomes_cheaper_with_more_windows_or_negatives(shape, method, windows, tokens):
    larger = replace(
        shape,
        groups=shape.groups + windows * shape.window(method),
        negative_tokens=shape.negative_tokens + tokens,
    )
    # Where all groups fit into one window, a larger one would hold more.
    assume(larger.window(method) == shape.window(method))
    small, large = cost_of(method, shape, H100_NODE), cost_of(method, larger, H100_NODE)
    for field, value in asdict(small).items():
        assert value <= getattr(large, field), field


@given(SIZES, st.sampled_from(METHODS))
def test_a_rank_alone_sends_nothing(shape, method):
    cost = cost_of(method, replace(shape, ranks=1), H100_NODE)
    assert cost.bytes_sent == 0
    assert cost.communication_seconds == 0


@pytest.mark.parametrize("hidden_size", [2048, 2560, 5120, 8192])
@pytest.mark.parametrize("rates", [H100_NODE, H100_CLUSTER])
def test_auto_sends_few_rows_rather_than_matrices(hidden_size, rates):
    for tokens in (16, 64, 256):
        shape = replace(NODE, hidden_size=hidden_size, positive_tokens=tokens)
        assert choose_method(shape, rates)[0] == "rows"


@pytest.mark.parametrize("hidden_size", [1024, 2048])
@pytest.mark.parametrize("rates", [H100_NODE, H100_CLUSTER])
def test_auto_makes_matrices_of_many_tokens_in_narrow_models(hidden_size, rates):
    tokens = 32 * hidden_size
    shape = replace(NODE, hidden_size=hidden_size, positive_tokens=tokens, window_rows=8 * tokens)
    assert choose_method(shape, rates)[0] == "gram"


def test_auto_sends_rows_at_any_length_where_the_matrix_costs_more_than_all_products():
    # The matrix takes N H^2 operations, the products 4 N H 352: 8192 is far beyond 4 x 352.
    for tokens in (1024, 4096, 65_536, 1 << 20):
        shape = replace(NODE, hidden_size=8192, positive_tokens=tokens, window_rows=8 * tokens)
        assert choose_method(shape, H100_NODE)[0] == "rows"


@given(SIZES)
def test_auto_picks_the_shorter_time(shape):
    method, costs = choose_method(shape, H100_NODE)
    assert set(costs) == set(METHODS)
    assert costs[method].seconds == min(cost.seconds for cost in costs.values())


def test_the_log_line_names_the_choice_first_and_its_numbers():
    line = describe_choice(*choose_method(NODE, H100_NODE))
    assert line.startswith("subspace method rows; predicted per rank and pass: rows ")
    assert "225.3 MB sent" in line
    assert "; gram " in line
    assert "1.702 GB sent" in line
    assert "\n" not in line


def test_an_impossible_size_is_named():
    with pytest.raises(ValueError, match="ranks is 0, expected at least 1"):
        replace(NODE, ranks=0)
    with pytest.raises(ValueError, match="'columns', expected one of rows, gram"):
        cost_of("columns", NODE, H100_NODE)
