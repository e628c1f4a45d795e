from __future__ import annotations

import torch

from megatron_resrl.subspace import Statistics, layer_norm
from megatron_resrl.subspace.rows import Padding


def direct(x_NH: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    x_NH = x_NH.double()
    centred = x_NH - x_NH.mean(0)
    return x_NH.mean(0), centred.T @ centred


def test_statistics_of_micro_batches_add_up_to_the_group():
    x_GNH = torch.randn(2, 1300, 300, generator=torch.Generator().manual_seed(0)) + 5
    valid_GN = torch.rand(2, 1300, generator=torch.Generator().manual_seed(1)) < 0.7
    valid_GN[1, 700:] = False  # the second group is complete before the first
    x_GNH[~valid_GN] = float("nan")
    statistics = Statistics.empty(2, 300)
    sizes = [1, 700, 0, 3, 596]
    for part, valid in zip(x_GNH.split(sizes, 1), valid_GN.split(sizes, 1), strict=True):
        statistics.add(part, valid)
    assert statistics.count_G.tolist() == valid_GN.sum(1).tolist()
    for group in range(2):
        mean, scatter = direct(x_GNH[group][valid_GN[group]])
        # Float64 sums of a thousand terms.
        torch.testing.assert_close(statistics.mean_GH[group], mean, rtol=1e-13, atol=0)
        found = statistics.symmetric_scatter()[group]
        torch.testing.assert_close(found, scatter, rtol=0, atol=1e-9)


def test_statistics_lose_no_digits_to_a_mean_far_from_zero():
    noise = torch.randn(400, 20, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    near, far = Statistics.empty(1, 20), Statistics.empty(1, 20)
    for part in noise.split(37):
        valid = torch.ones(1, len(part), dtype=torch.bool)
        near.add(part.unsqueeze(0), valid)
        far.add(part.unsqueeze(0) + 2.0**20, valid)
    # Adding 2^20 rounds the noise to 2^-33; a sum of squares would lose 2^40 of 2^53 instead.
    torch.testing.assert_close(far.scatter_GHH, near.scatter_GHH, rtol=0, atol=1e-6)


def test_layer_norm_is_that_of_torch_in_float32():
    hidden = torch.randn(7, 40, generator=torch.Generator().manual_seed(0)).bfloat16()
    expected = torch.nn.LayerNorm(40, eps=1e-5, elementwise_affine=False)(hidden.float())
    assert torch.equal(layer_norm(hidden), expected)


def test_padding_puts_rows_in_lines_and_takes_them_back():
    group = torch.tensor([2, 0, 2, 2, 0])
    padding = Padding.of(group, 4, "cpu")
    rows = torch.arange(1.0, 6.0)
    expected = [[2, 5, 0], [0, 0, 0], [1, 3, 4], [0, 0, 0]]
    assert padding.pad(rows).tolist() == expected
    assert padding.valid_GW.tolist() == [[bool(value) for value in line] for line in expected]
    assert torch.equal(padding.take(padding.pad(rows)), rows)
