from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from unit.subspace.subspace_reference import mixed_group, reference_weights, weigh_group

from megatron_resrl.subspace import token_weights, token_weights_with_reports

GOLDEN = ("gap_small", "gap_wide", "no_gap", "rank_over_tokens")
METHODS = ("rows", "gram")
both_methods = pytest.mark.parametrize("method", METHODS)


def load(reference: Path, name: str) -> tuple[list[torch.Tensor], int, torch.Tensor]:
    data = np.load(reference / "golden" / f"{name}.npz")
    batch = [torch.from_numpy(data[key]) for key in ("hidden", "mask", "positive", "group")]
    return batch, int(data["rank"]), torch.from_numpy(data["weights_exact"])


@both_methods
@pytest.mark.parametrize("name", GOLDEN)
def test_token_weights_equal_the_svd_on_reference_batches(reference, name, method):
    batch, rank, exact = load(reference, name)
    weights, _ = token_weights_with_reports(*batch, rank=rank, method=method)
    # Asked for: 1e-3. Float32 layer norm leaves 1e-6 where the spectrum has no gap.
    torch.testing.assert_close(weights.double(), exact, atol=1e-5, rtol=0)


@both_methods
@pytest.mark.parametrize("name", GOLDEN)
def test_token_weights_never_read_masked_positions(reference, name, method):
    (hidden, mask, positive, group), rank, _ = load(reference, name)
    hidden = torch.where(mask.bool().unsqueeze(-1), hidden, float("nan"))
    batch = hidden, mask, positive, group
    weights, _ = token_weights_with_reports(*batch, rank=rank, method=method)
    assert torch.equal(weights[~mask.bool()], torch.ones(int((mask == 0).sum())))
    assert torch.equal(weights[positive], torch.ones_like(weights[positive]))


@both_methods
@pytest.mark.parametrize(
    ("tokens", "hidden_size", "shape"),
    [
        (150, 256, {"power": 0.5}),  # full decomposition of the tokens' Gram matrix
        (1300, 96, {"power": 0.3}),  # and of the hidden states'
        (1600, 640, {"power": 0.5}),  # a Krylov space
        (1600, 640, {"power": 0.1, "outliers": 0}),  # flat: the iteration has to give up
        (1600, 640, {"power": 1.4}),  # steep: float32 is not enough
    ],
)
def test_token_weights_equal_float64_svd_without_a_gap(tokens, hidden_size, shape, method):
    hidden, positive = mixed_group(tokens, hidden_size, **shape)
    weights, report = weigh_group(hidden, positive, method=method)
    exact = torch.from_numpy(reference_weights(hidden.numpy(), positive.numpy(), 64))
    assert report.rank == min(64, report.positive_tokens - 1)
    # The bound asked for is 1e-3; rounding of the float32 layer norm explains up to 1e-4 here.
    torch.testing.assert_close(weights.double(), exact, atol=2e-4, rtol=0)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    tokens=st.integers(8, 90),
    hidden_size=st.integers(4, 80),
    rank=st.integers(1, 70),
    power=st.floats(0.0, 1.5),
    seed=st.integers(0, 10_000),
    method=st.sampled_from(METHODS),
)
def test_token_weights_equal_float64_svd_for_any_shape(
    tokens, hidden_size, rank, power, seed, method
):
    hidden, positive = mixed_group(tokens, hidden_size, seed, power=power, outliers=0)
    weights, report = weigh_group(hidden, positive, rank=rank, method=method)
    # Layer norm takes one direction away, so the definition's min(N - 1, H) holds a null direction
    # that ours drops.
    assert report.rank <= min(rank, report.positive_tokens - 1, hidden_size - 1)
    if report.q_high - report.q_low < 1e-4:
        return  # quantiles this close turn rounding into weights, in the reference too
    exact = reference_weights(hidden.numpy(), positive.numpy(), min(rank, hidden_size - 1))
    # Quantile spreads down to 1e-4 amplify float32 rounding of about 1e-7 by up to 1e4.
    np.testing.assert_allclose(weights.numpy(), exact, atol=1e-3)


@settings(max_examples=25, deadline=None, derandomize=True)
@given(
    tokens=st.integers(8, 300),
    hidden_size=st.integers(4, 80),
    power=st.floats(0.2, 1.2),
    seed=st.integers(0, 10_000),
)
def test_token_weights_of_both_methods_agree(tokens, hidden_size, power, seed):
    hidden, positive = mixed_group(tokens, hidden_size, seed, power=power, outliers=0)
    (rows, report), (gram, other) = (
        weigh_group(hidden, positive, rank=16, method=method) for method in METHODS
    )
    assert report.rank == other.rank
    if report.q_high - report.q_low > 1e-3:
        # Asked for: 1e-4. Both work in float64 at these sizes; 1e-7 of layer norm / spread.
        torch.testing.assert_close(rows, gram, atol=1e-5, rtol=0)


@both_methods
@pytest.mark.parametrize(("tokens", "hidden_size"), [(120, 64), (1400, 640)])
def test_token_weights_ignore_the_order_of_tokens(tokens, hidden_size, method):
    hidden, positive = mixed_group(tokens, hidden_size)
    order = torch.randperm(tokens, generator=torch.Generator().manual_seed(5))
    weights, report = weigh_group(hidden, positive, method=method)
    shuffled, again = weigh_group(hidden[order], positive[order], method=method)
    # Sums over tokens in another order.
    torch.testing.assert_close(shuffled, weights[order], atol=1e-5, rtol=0)
    assert again.rank == report.rank
    assert again.energy == pytest.approx(report.energy, rel=1e-6)


@both_methods
@pytest.mark.parametrize(("tokens", "hidden_size"), [(120, 64), (1400, 640)])
def test_token_weights_ignore_a_rotation_of_the_states(tokens, hidden_size, method):
    hidden, positive = mixed_group(tokens, hidden_size)
    generator = torch.Generator().manual_seed(5)
    # Layer norm commutes with rotations that keep the all-ones direction.
    square = torch.randn(hidden_size, hidden_size, generator=generator, dtype=torch.float64)
    square[:, 0] = 1
    frame = torch.linalg.qr(square).Q
    turn = torch.linalg.qr(square[1:, 1:]).Q
    inside = frame[:, 1:] @ turn @ frame[:, 1:].T
    rotation = frame[:, :1] @ frame[:, :1].T + inside
    rotated = (hidden.double() @ rotation).float()
    weights, _ = weigh_group(hidden, positive, method=method)
    turned, _ = weigh_group(rotated, positive, method=method)
    # Rotating in float32 moves every entry by 6e-8 of the outliers, quantile spreads amplify.
    torch.testing.assert_close(turned, weights, atol=2e-4, rtol=0)


def test_token_weights_repeat_to_the_same_bits():
    group = mixed_group(1400, 640)
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first = weigh_group(*group, max_positive_tokens=500)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(2)
    second = weigh_group(*group, max_positive_tokens=500)
    assert torch.equal(first[0], second[0])
    assert first[1] == second[1]


@pytest.mark.parametrize(
    ("positives", "negatives", "reason"),
    [
        (0, 9, "no_positive"),
        (9, 0, "no_negative"),
        (2, 9, "few_positive_tokens"),
        (3, 9, "few_positive_tokens"),
    ],
)
def test_token_weights_of_skipped_groups_are_one(positives, negatives, reason):
    tokens = positives + negatives
    hidden = torch.randn(tokens, 16, generator=torch.Generator().manual_seed(0))
    weights, report = weigh_group(hidden, torch.arange(tokens) < positives)
    assert torch.equal(weights, torch.ones(tokens))
    found = (report.skipped, report.positive_tokens, report.negative_tokens)
    assert found == (reason, positives, negatives)
    assert report.mean_weight == 1


@both_methods
def test_token_weights_of_close_quantiles_are_in_the_middle(method):
    hidden, positive = mixed_group(60, 32)
    hidden[~positive] = hidden[~positive][0].clone()
    weights, report = weigh_group(hidden, positive, floor=0.3, method=method)
    assert report.degenerate
    assert torch.equal(weights[~positive], torch.full_like(weights[~positive], 0.65))
    assert report.mean_weight == pytest.approx(0.65, abs=1e-12)


@both_methods
@pytest.mark.parametrize(("tokens", "hidden_size"), [(60, 32), (1400, 640)])
def test_token_weights_of_equal_positives_rank_by_distance(tokens, hidden_size, method):
    hidden, positive = mixed_group(tokens, hidden_size)
    hidden[positive] = hidden[0].clone()
    weights, report = weigh_group(hidden, positive, method=method)
    assert (report.rank, report.energy) == (0, 1.0)
    exact = reference_weights(hidden.numpy(), positive.numpy(), rank=0)
    # No subspace: only rounding of the float32 layer norm is left.
    np.testing.assert_allclose(weights.numpy(), exact, atol=1e-5)


@both_methods
@pytest.mark.parametrize("count", [4, 5])
def test_token_weights_of_few_positives_span_one_less(count, method):
    hidden, _ = mixed_group(40, 64)
    positive = torch.arange(40) < count
    weights, report = weigh_group(hidden, positive, method=method)
    assert report.rank == count - 1
    assert report.energy == pytest.approx(1, abs=1e-6)  # float32 rows
    exact = reference_weights(hidden.numpy(), positive.numpy(), rank=64)
    np.testing.assert_allclose(weights.numpy(), exact, atol=1e-5)  # float32 layer norm


@both_methods
@pytest.mark.parametrize(("tokens", "hidden_size", "distinct"), [(90, 64, 10), (1500, 640, 30)])
def test_token_weights_of_duplicates_span_distinct_directions(
    tokens, hidden_size, distinct, method
):
    hidden, positive = mixed_group(tokens, hidden_size)
    rows = positive.nonzero().flatten()
    hidden[rows] = hidden[rows[torch.arange(len(rows)) % distinct]]
    weights, report = weigh_group(hidden, positive, method=method)
    assert report.rank == distinct - 1
    exact = reference_weights(hidden.numpy(), positive.numpy(), rank=distinct - 1)
    np.testing.assert_allclose(weights.numpy(), exact, atol=1e-5)  # float32 layer norm


@both_methods
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_token_weights_take_other_float_types(dtype, method):
    hidden, positive = mixed_group(80, 48)
    hidden = hidden.to(dtype)
    weights, _ = weigh_group(hidden, positive, method=method)
    exact = reference_weights(hidden.double().numpy(), positive.numpy(), rank=64)
    assert weights.dtype == torch.float32
    np.testing.assert_allclose(weights.numpy(), exact, atol=1e-5)  # float32 layer norm


def test_token_weights_ignore_autocast():
    group = mixed_group(1400, 640)
    outside, _ = weigh_group(*group)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside, _ = weigh_group(*group)
    assert torch.equal(inside, outside)


@both_methods
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), 1e30])
@pytest.mark.parametrize("correct", [True, False])
def test_token_weights_name_states_that_are_not_finite(bad, correct, method):
    hidden, positive = mixed_group(50, 32)
    rows = (positive == correct).nonzero().flatten()
    hidden[rows[[2, 9]], 3] = bad
    said = f"2 of {len(rows)} tokens.*token 2 of response {0 if correct else 1}"
    with pytest.raises(FloatingPointError, match=said):
        weigh_group(hidden, positive, method=method)


@both_methods
def test_token_weights_of_groups_are_independent(method):
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(12, 9, 24, generator=generator)
    mask = torch.rand(12, 9, generator=generator) < 0.8
    positive = torch.arange(12) % 2 == 0
    group = torch.tensor([5, 5, 9, 9, 5, 5, 9, 9, 7, 7, 7, 7])
    positive[group == 7] = False
    weights, reports = token_weights_with_reports(
        hidden, mask, positive, group, rank=6, method=method
    )
    assert list(reports) == [5, 7, 9]
    assert [report.skipped for report in reports.values()] == [None, "no_positive", None]
    rows = group == 9
    alone = token_weights(hidden[rows], mask[rows], positive[rows], group[rows], rank=6)
    torch.testing.assert_close(weights[rows], alone, atol=1e-6, rtol=0)  # batched products
    for number, report in reports.items():
        negatives = weights[mask & (~positive & (group == number)).unsqueeze(1)]
        assert report.negative_tokens == len(negatives)
        assert report.mean_weight == pytest.approx(float(negatives.double().mean()), abs=1e-6)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"rank": 0}, "rank is 0"),
        ({"max_positive_tokens": 3}, "max_positive_tokens is 3"),
        ({"quantiles": (0.8, 0.2)}, "two increasing numbers between 0 and 1"),
        ({"floor": 1.5}, "floor is 1.5"),
        ({"weights": "mean"}, "weights is 'mean'"),
    ],
)
def test_token_weights_name_settings_out_of_range(changed, message):
    with pytest.raises(ValueError, match=message):
        weigh_group(*mixed_group(30, 16), **changed)


def test_token_weights_refuse_shapes_that_do_not_fit():
    hidden, positive = mixed_group(30, 16)
    group = torch.zeros(3, dtype=torch.int64)
    with pytest.raises(ValueError, match=r"hidden is torch\.int64"):
        token_weights(torch.ones(3, 10, 16).long(), torch.ones(3, 10), positive[:3], group)
    with pytest.raises(ValueError, match="response_mask"):
        token_weights(hidden.view(3, 10, 16), torch.ones(3, 9), positive[:3], group)
    with pytest.raises(ValueError, match="group has shape"):
        token_weights(hidden.view(3, 10, 16), torch.ones(3, 10), positive[:3], group[:2])


def test_token_weights_refuse_rewards_as_positives():
    hidden, _ = mixed_group(30, 16)
    batch = hidden.view(3, 10, 16), torch.ones(3, 10)
    group = torch.zeros(3, dtype=torch.int64)
    for wrong, named in (([-1.0, 1.0, 1.0], "-1.0"), ([0, 2, 1], "2"), ([0.5, 0, 1], "0.5")):
        with pytest.raises(ValueError, match=f"positive has the value {named}, expected 0 and 1"):
            token_weights(*batch, torch.tensor(wrong), group)
    with pytest.raises(ValueError, match=r"positive has the value nan"):
        token_weights(*batch, torch.tensor([float("nan"), 0.0, 1.0]), group)
    with pytest.raises(ValueError, match="group has values that are no integers"):
        token_weights(*batch, [1, 0, 0], [0.5, 0.5, 0.5])


def test_token_weights_take_arrays_and_lists():
    hidden, _ = mixed_group(30, 16)
    hidden = hidden.view(3, 10, 16)
    mask, positive, group = torch.ones(3, 10), torch.tensor([True, False, False]), torch.zeros(3)
    expected = token_weights(hidden, mask, positive, group.long(), rank=4)
    arrays = hidden.numpy(), mask.numpy(), positive.numpy(), group.numpy()
    torch.testing.assert_close(token_weights(*arrays, rank=4), expected, rtol=0, atol=0)
    lists = hidden.tolist(), mask.int().tolist(), [1, 0, 0], [0, 0, 0]
    torch.testing.assert_close(token_weights(*lists, rank=4), expected, rtol=0, atol=1e-6)
    assert expected[1:].min() < 1
