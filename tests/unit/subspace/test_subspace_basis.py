from __future__ import annotations

import pytest
import torch
from unit.subspace.subspace_reference import decaying

from megatron_resrl.subspace import (
    Statistics,
    basis_from_rows,
    basis_from_statistics,
    layer_norm,
    residuals,
)


def exact_svd(x_NH: torch.Tensor, rank: int) -> tuple[torch.Tensor, torch.Tensor]:
    centred = x_NH.double() - x_NH.double().mean(0)
    _, singular, directions = torch.linalg.svd(centred, full_matrices=False)
    return singular[:rank].square(), directions[:rank].T


def largest_angle(first_HK: torch.Tensor, second_HK: torch.Tensor) -> float:
    outside = second_HK - first_HK @ (first_HK.T @ second_HK)
    return float(torch.linalg.matrix_norm(outside, ord=2))


def from_statistics(x_NH: torch.Tensor, rank: int):
    statistics = Statistics.empty(x_NH.shape[1])
    statistics.add(x_NH)
    return basis_from_statistics(statistics, rank)


def random(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


# (tokens, hidden size): small; tall; wide; large enough to iterate on the rows.
SIZES = [(40, 100), (300, 60), (90, 700), (1000, 600)]


@pytest.mark.parametrize("solve", [lambda x, k: basis_from_rows(x.clone(), k), from_statistics])
@pytest.mark.parametrize(("tokens", "hidden_size"), SIZES)
def test_basis_spans_the_leading_singular_vectors(solve, tokens, hidden_size):
    x_NH = layer_norm(decaying(tokens, hidden_size))
    rank = min(32, tokens - 1)
    basis = solve(x_NH, rank)
    eigenvalues, directions = exact_svd(x_NH, rank)
    torch.testing.assert_close(basis.eigenvalues_K, eigenvalues, rtol=1e-6, atol=0)  # float32 rows
    # Neighbouring eigenvalues a few percent apart amplify float32 rounding to some 1e-5.
    assert largest_angle(basis.vectors_HK, directions) < 1e-4
    unit = basis.vectors_HK.T @ basis.vectors_HK
    torch.testing.assert_close(unit, torch.eye(rank).double(), atol=1e-7, rtol=0)


@pytest.mark.parametrize("shape", [{}, {"power": 0.1, "outliers": 0}, {"power": 1.4}])
def test_rows_and_statistics_give_the_same_residuals(shape):
    hidden = decaying(1900, 600, **shape)
    x_NH = layer_norm(hidden[:900])
    by_statistics = from_statistics(x_NH, 64)
    by_rows = basis_from_rows(x_NH, 64)
    rows = torch.arange(900, 1900)
    first, second = residuals(hidden, rows, by_rows), residuals(hidden, rows, by_statistics)
    torch.testing.assert_close(first, second, rtol=2e-6, atol=0)  # float32 against float64 products
    torch.testing.assert_close(by_rows.energy, by_statistics.energy, rtol=1e-6, atol=0)


@pytest.mark.parametrize("solve", [lambda x, k: basis_from_rows(x.clone(), k), from_statistics])
@pytest.mark.parametrize(("tokens", "hidden_size"), [(60, 100), (1000, 600)])
def test_tokens_on_a_plane_give_as_many_directions_as_the_plane_has(solve, tokens, hidden_size):
    x_NH = random(tokens, 12) @ random(12, hidden_size)
    basis = solve(x_NH, 64)
    assert basis.rank == 12
    assert float(basis.energy) == pytest.approx(1, abs=1e-6)  # float32 rows
    assert largest_angle(basis.vectors_HK, exact_svd(x_NH, 12)[1]) < 1e-5


@pytest.mark.parametrize("solve", [lambda x, k: basis_from_rows(x.clone(), k), from_statistics])
@pytest.mark.parametrize(("tokens", "hidden_size"), [(60, 100), (1000, 600)])
def test_equal_tokens_give_no_direction(solve, tokens, hidden_size):
    basis = solve(random(1, hidden_size).expand(tokens, hidden_size).contiguous(), 8)
    assert basis.rank == 0
    assert float(basis.energy) == 1


@pytest.mark.parametrize("solve", [lambda x, k: basis_from_rows(x.clone(), k), from_statistics])
def test_equal_eigenvalues_give_orthonormal_directions_of_full_energy_share(solve):
    tokens = 800  # one-hot tokens: all 799 eigenvalues are 1, so any 64 directions are right
    basis = solve(torch.eye(tokens), 64)
    assert basis.rank == 64
    assert float(basis.energy) == pytest.approx(64 / (tokens - 1), rel=1e-5)  # float32 rows
    unit = basis.vectors_HK.T @ basis.vectors_HK
    torch.testing.assert_close(unit, torch.eye(64).double(), atol=1e-6, rtol=0)


def test_wanted_directions_are_capped_by_tokens_and_hidden_size():
    assert basis_from_rows(random(5, 30), 64).rank == 4
    assert basis_from_rows(random(50, 3), 64).rank == 3
    assert basis_from_rows(random(1, 3), 64).rank == 0
