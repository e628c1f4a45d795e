from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from unit.subspace.subspace_reference import mixed_group, reference_weights

from megatron_resrl.subspace import (
    group_token_weights,
    sampling_key,
    token_weights,
    token_weights_with_reports,
)

GOLDEN = ("gap_small", "gap_wide", "no_gap", "rank_over_tokens")


def load(shared: Path, name: str) -> tuple[list[torch.Tensor], int, torch.Tensor]:
    data = np.load(shared / "golden" / f"{name}.npz")
    batch = [torch.from_numpy(data[key]) for key in ("hidden", "mask", "positive", "group")]
    return batch, int(data["rank"]), torch.from_numpy(data["weights_exact"])


@pytest.mark.parametrize("name", GOLDEN)
def test_weights_equal_the_exact_svd_on_reference_batches(shared, name):
    batch, rank, exact = load(shared, name)
    weights = token_weights(*batch, rank=rank)
    # Asked for: 1e-3. Float32 layer norm leaves 1e-6 where the spectrum has no gap.
    torch.testing.assert_close(weights.double(), exact, atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", GOLDEN)
def test_masked_positions_and_positives_keep_weight_one(shared, name):
    (hidden, mask, positive, group), rank, _ = load(shared, name)
    hidden = torch.where(mask.bool().unsqueeze(-1), hidden, float("nan"))
    weights = token_weights(hidden, mask, positive, group, rank=rank)
    assert torch.equal(weights[~mask.bool()], torch.ones(int((mask == 0).sum())))
    assert torch.equal(weights[positive], torch.ones_like(weights[positive]))


@pytest.mark.parametrize(
    ("tokens", "hidden_size", "shape"),
    [
        (150, 256, {"power": 0.5}),  # token-side Gram matrix
        (1200, 96, {"power": 0.3}),  # hidden-side Gram matrix
        (1600, 640, {"power": 0.5}),  # products with the rows
        (1600, 640, {"power": 0.1, "outliers": 0}),  # flat: the iteration has to give up
        (1600, 640, {"power": 1.4}),  # steep: float32 rows are not enough
    ],
)
def test_weights_equal_a_full_float64_svd_on_spectra_without_a_gap(tokens, hidden_size, shape):
    hidden, index, positive = mixed_group(tokens, hidden_size, **shape)
    weights, report = group_token_weights(hidden, index, positive)
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
)
def test_weights_equal_a_full_svd_for_any_shape_rank_and_spectrum(
    tokens, hidden_size, rank, power, seed
):
    hidden, index, positive = mixed_group(tokens, hidden_size, seed, power=power, outliers=0)
    weights, report = group_token_weights(hidden, index, positive, rank=rank)
    # Layer norm takes one direction away, so the definition's min(N - 1, H) holds a null direction
    # that ours drops.
    assert report.rank <= min(rank, report.positive_tokens - 1, hidden_size - 1)
    if report.q_high - report.q_low < 1e-4:
        return  # quantiles this close turn rounding into weights, in the reference too
    exact = reference_weights(hidden.numpy(), positive.numpy(), min(rank, hidden_size - 1))
    # Quantile spreads down to 1e-4 amplify float32 rounding of about 1e-7 by up to 1e4.
    np.testing.assert_allclose(weights.numpy(), exact, atol=1e-3)


@pytest.mark.parametrize(("tokens", "hidden_size"), [(120, 64), (1400, 640)])
def test_order_of_tokens_changes_nothing(tokens, hidden_size):
    hidden, index, positive = mixed_group(tokens, hidden_size)
    order = torch.randperm(tokens, generator=torch.Generator().manual_seed(5))
    weights, report = group_token_weights(hidden, index, positive)
    shuffled, again = group_token_weights(hidden[order], index[order], positive[order])
    assert torch.equal(shuffled, weights[order])
    assert again == report


@pytest.mark.parametrize(("tokens", "hidden_size"), [(120, 64), (1400, 640)])
def test_rotation_of_the_hidden_space_changes_nothing(tokens, hidden_size):
    hidden, index, positive = mixed_group(tokens, hidden_size)
    generator = torch.Generator().manual_seed(5)
    # Layer norm commutes with rotations that keep the all-ones direction.
    square = torch.randn(hidden_size, hidden_size, generator=generator, dtype=torch.float64)
    square[:, 0] = 1
    frame = torch.linalg.qr(square).Q
    turn = torch.linalg.qr(square[1:, 1:]).Q
    inside = frame[:, 1:] @ turn @ frame[:, 1:].T
    rotation = frame[:, :1] @ frame[:, :1].T + inside
    rotated = (hidden.double() @ rotation).float()
    weights, _ = group_token_weights(hidden, index, positive)
    turned, _ = group_token_weights(rotated, index, positive)
    # Rotating in float32 moves every entry by 6e-8 of the outliers, quantile spreads amplify.
    torch.testing.assert_close(turned, weights, atol=2e-4, rtol=0)


@pytest.mark.parametrize(("tokens", "hidden_size"), [(60, 576), (1400, 640)])
def test_repeated_runs_are_bitwise_equal_and_leave_the_global_generator_alone(tokens, hidden_size):
    group = mixed_group(tokens, hidden_size)
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first = group_token_weights(*group, max_positive_tokens=20)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(2)
    second = group_token_weights(*group, max_positive_tokens=20)
    assert torch.equal(first[0], second[0])
    assert first[1] == second[1]


def test_sample_depends_on_indices_and_key_only():
    hidden, index, positive = mixed_group(200, 48)
    settings = {"max_positive_tokens": 30, "seed": sampling_key(1, 2, 3)}
    weights, report = group_token_weights(hidden, index, positive, **settings)
    assert report.positive_tokens == int(positive.sum())
    order = torch.randperm(200, generator=torch.Generator().manual_seed(9))
    shuffled, _ = group_token_weights(hidden[order], index[order], positive[order], **settings)
    assert torch.equal(shuffled, weights[order])
    settings["seed"] = sampling_key(1, 2, 4)
    assert not torch.equal(group_token_weights(hidden, index, positive, **settings)[0], weights)


def test_sample_holds_exactly_the_budget_and_equals_a_group_of_the_sampled_tokens():
    hidden, index, positive = mixed_group(200, 48)
    ordered = index[positive].sort().values
    generator = torch.Generator().manual_seed(7)
    chosen = ordered[torch.randperm(len(ordered), generator=generator)[:30]]
    keep = torch.isin(index, chosen) | ~positive
    sampled, _ = group_token_weights(hidden, index, positive, max_positive_tokens=30, seed=7)
    alone, report = group_token_weights(hidden[keep], index[keep], positive[keep])
    assert report.positive_tokens == 30
    assert torch.equal(sampled[keep], alone)


def test_sampling_keys_are_stable_and_distinct():
    keys = {sampling_key(s, t, g) for s in range(3) for t in range(5) for g in range(7)}
    assert len(keys) == 105
    assert sampling_key(0, 0, 0) == 759_540_517_790_923_586


@pytest.mark.parametrize(
    ("positives", "negatives", "reason"),
    [
        (0, 9, "no_positive"),
        (9, 0, "no_negative"),
        (3, 9, "few_positive_tokens"),
        (0, 0, "no_positive"),
    ],
)
def test_skipped_groups_keep_weight_one_and_say_why(positives, negatives, reason):
    tokens = positives + negatives
    hidden = torch.randn(tokens, 16, generator=torch.Generator().manual_seed(0))
    positive = torch.arange(tokens) < positives
    weights, report = group_token_weights(hidden, torch.arange(tokens), positive)
    assert torch.equal(weights, torch.ones(tokens))
    assert (report.skipped, report.positive_tokens, report.negative_tokens) == (
        reason,
        positives,
        negatives,
    )
    assert report.mean_weight == 1


def test_close_quantiles_give_all_negatives_the_mid_weight():
    hidden, index, positive = mixed_group(60, 32)
    hidden[~positive] = hidden[~positive][0].clone()
    weights, report = group_token_weights(hidden, index, positive, floor=0.3)
    assert report.degenerate
    assert torch.equal(weights[~positive], torch.full_like(weights[~positive], 0.65))
    assert report.mean_weight == pytest.approx(0.65, abs=1e-12)


def test_constant_positives_span_nothing_and_negatives_are_ranked_by_distance():
    hidden, index, positive = mixed_group(60, 32)
    hidden[positive] = hidden[0].clone()
    weights, report = group_token_weights(hidden, index, positive)
    assert (report.rank, report.energy) == (0, 1.0)
    exact = reference_weights(hidden.numpy(), positive.numpy(), rank=0)
    # No subspace: only rounding of the float32 layer norm is left.
    np.testing.assert_allclose(weights.numpy(), exact, atol=1e-5)


@pytest.mark.parametrize("count", [4, 5])
def test_few_positive_tokens_span_one_direction_less_than_their_number(count):
    hidden, index, _ = mixed_group(40, 64)
    positive = torch.arange(40) < count
    weights, report = group_token_weights(hidden, index, positive)
    assert report.rank == count - 1
    assert report.energy == pytest.approx(1, abs=1e-12)
    exact = reference_weights(hidden.numpy(), positive.numpy(), rank=64)
    np.testing.assert_allclose(weights.numpy(), exact, atol=1e-5)  # float32 layer norm


def test_duplicated_tokens_span_only_their_distinct_directions():
    hidden, index, positive = mixed_group(90, 64)
    rows = positive.nonzero().flatten()
    hidden[rows] = hidden[rows[torch.arange(len(rows)) % 10]]
    weights, report = group_token_weights(hidden, index, positive)
    assert report.rank == 9
    exact = reference_weights(hidden.numpy(), positive.numpy(), rank=9)
    np.testing.assert_allclose(weights.numpy(), exact, atol=1e-5)  # float32 layer norm


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_float_types_give_the_weights_of_the_same_values(dtype):
    hidden, index, positive = mixed_group(80, 48)
    hidden = hidden.to(dtype)
    weights, _ = group_token_weights(hidden, index, positive)
    exact = reference_weights(hidden.double().numpy(), positive.numpy(), rank=64)
    assert weights.dtype == torch.float32
    np.testing.assert_allclose(weights.numpy(), exact, atol=1e-5)  # float32 layer norm


def test_autocast_around_the_pass_does_not_reach_it():
    group = mixed_group(1400, 640)
    outside, _ = group_token_weights(*group)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside, _ = group_token_weights(*group)
    assert torch.equal(inside, outside)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), 1e30])
def test_non_finite_hidden_states_are_counted_and_named(bad):
    hidden, index, positive = mixed_group(50, 32)
    hidden[[7, 30], 3] = bad
    first = int(index[[7, 30]].min())
    with pytest.raises(FloatingPointError, match=f"2 of 50 tokens.*first token_index {first}"):
        group_token_weights(hidden, index, positive)


def test_tokens_given_twice_are_refused():
    hidden, index, positive = mixed_group(50, 32)
    index[3] = index[8]
    with pytest.raises(ValueError, match=f"occur twice, first {int(index[8])}"):
        group_token_weights(hidden, index, positive)


def test_groups_of_a_batch_are_independent_and_reported():
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(12, 9, 24, generator=generator)
    mask = torch.rand(12, 9, generator=generator) < 0.8
    positive = torch.arange(12) % 2 == 0
    group = torch.tensor([5, 5, 9, 9, 5, 5, 9, 9, 7, 7, 7, 7])
    positive[group == 7] = False
    weights, reports = token_weights_with_reports(hidden, mask, positive, group, rank=6)
    assert list(reports) == [5, 7, 9]
    assert [report.skipped for report in reports.values()] == [None, "no_positive", None]
    rows = group == 9
    alone = token_weights(hidden[rows], mask[rows], positive[rows], group[rows], rank=6)
    assert torch.equal(weights[rows], alone)
    for number, report in reports.items():
        negatives = weights[mask & (~positive & (group == number)).unsqueeze(1)]
        assert report.negative_tokens == len(negatives)
        assert report.mean_weight == pytest.approx(float(negatives.double().mean()), abs=1e-6)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"rank": 0}, "rank is 0"),
        ({"max_positive_tokens": 3}, "max_positive_tokens is 3"),
        ({"quantiles": (0.8, 0.2)}, "quantiles are"),
        ({"floor": 1.5}, "floor is 1.5"),
    ],
)
def test_settings_out_of_range_are_refused_by_name(changed, message):
    with pytest.raises(ValueError, match=message):
        group_token_weights(*mixed_group(30, 16), **changed)


def test_shapes_that_do_not_fit_are_refused():
    hidden, index, positive = mixed_group(30, 16)
    with pytest.raises(ValueError, match=r"positive is torch\.int64"):
        group_token_weights(hidden, index, positive.long())
    with pytest.raises(ValueError, match="token_index"):
        group_token_weights(hidden, index[:-1], positive)
    with pytest.raises(ValueError, match="response_mask"):
        token_weights(hidden.view(3, 10, 16), torch.ones(3, 9), positive[:3], index[:3])
    with pytest.raises(ValueError, match="group has shape"):
        token_weights(hidden.view(3, 10, 16), torch.ones(3, 10), positive[:3], index[:4])
