from __future__ import annotations

import torch

from megatron_resrl.subspace import Statistics, layer_norm, normalised_rows


def direct(x_NH: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    x_NH = x_NH.double()
    centred = x_NH - x_NH.mean(0)
    return x_NH.mean(0), centred.T @ centred


def test_statistics_of_micro_batches_equal_those_of_all_tokens():
    x_NH = torch.randn(1300, 300, generator=torch.Generator().manual_seed(0)) + 5
    statistics = Statistics.empty(300)
    for part in x_NH.split([1, 700, 0, 3, 596]):
        statistics.add(part)
    mean, scatter = direct(x_NH)
    assert statistics.count == 1300
    # Float64 sums of a thousand terms.
    torch.testing.assert_close(statistics.mean_H, mean, rtol=1e-13, atol=0)
    torch.testing.assert_close(statistics.symmetric_scatter(), scatter, rtol=0, atol=1e-9)


def test_a_mean_far_from_zero_costs_no_digits():
    noise = torch.randn(400, 20, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    near, far = Statistics.empty(20), Statistics.empty(20)
    for part in noise.split(37):
        near.add(part)
        far.add(part + 2.0**20)
    # Adding 2^20 rounds the noise to 2^-33; a sum of squares would lose 2^40 of 2^53 instead.
    torch.testing.assert_close(far.scatter_HH, near.scatter_HH, rtol=0, atol=1e-6)


def test_layer_norm_is_torchs_without_parameters_in_float32():
    hidden = torch.randn(7, 40, generator=torch.Generator().manual_seed(0)).bfloat16()
    expected = torch.nn.LayerNorm(40, eps=1e-5, elementwise_affine=False)(hidden.float())
    assert torch.equal(layer_norm(hidden), expected)
    rows = torch.tensor([6, 0, 3])
    assert torch.equal(normalised_rows(hidden, rows), expected[rows])
