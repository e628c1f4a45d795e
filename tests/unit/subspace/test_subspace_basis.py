from __future__ import annotations

import pytest
import torch
from unit.subspace.subspace_reference import decaying

from megatron_resrl.subspace import (
    Basis,
    Statistics,
    basis_from_rows,
    basis_from_statistics,
    layer_norm,
    residuals,
)
from megatron_resrl.subspace import basis as basis_module


def exact_svd(x_NH: torch.Tensor, rank: int) -> tuple[torch.Tensor, torch.Tensor]:
    centred = x_NH.double() - x_NH.double().mean(0)
    _, singular, directions = torch.linalg.svd(centred, full_matrices=False)
    return singular[:rank].square(), directions[:rank].T


def largest_angle(first_HK: torch.Tensor, second_HK: torch.Tensor) -> float:
    outside = second_HK - first_HK @ (first_HK.T @ second_HK)
    return float(torch.linalg.matrix_norm(outside, ord=2))


def from_rows(x_NH: torch.Tensor, rank: int) -> Basis:
    valid = torch.ones(1, len(x_NH), dtype=torch.bool)
    return basis_from_rows(x_NH.clone().unsqueeze(0), valid, rank)


def from_statistics(x_NH: torch.Tensor, rank: int) -> Basis:
    statistics = Statistics.empty(1, x_NH.shape[1])
    statistics.add(x_NH.unsqueeze(0), torch.ones(1, len(x_NH), dtype=torch.bool))
    return basis_from_statistics(statistics, rank)


both_ways = pytest.mark.parametrize("solve", [from_rows, from_statistics])


def random(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


# (tokens, hidden size): small; tall; wide; large enough to iterate on the rows.
SIZES = [(40, 100), (300, 60), (90, 700), (1000, 600)]


@both_ways
@pytest.mark.parametrize(("tokens", "hidden_size"), SIZES)
def test_basis_spans_the_leading_singular_vectors(solve, tokens, hidden_size):
    x_NH = layer_norm(decaying(tokens, hidden_size))
    rank = min(32, tokens - 1)
    check_against_svd(solve(x_NH, rank), x_NH, rank)


def check_against_svd(basis: Basis, x_NH: torch.Tensor, rank: int) -> None:
    eigenvalues, directions = exact_svd(x_NH, rank)
    # Float32 rows.
    torch.testing.assert_close(basis.eigenvalues_GK[0], eigenvalues, rtol=1e-6, atol=0)
    # Neighbouring eigenvalues a few percent apart amplify float32 rounding to some 1e-5.
    assert largest_angle(basis.vectors_GHK[0], directions) < 1e-4
    unit = basis.vectors_GHK[0].T @ basis.vectors_GHK[0]
    torch.testing.assert_close(unit, torch.eye(rank).double(), atol=1e-12, rtol=0)


@pytest.mark.parametrize("form", ["rows", "gram"])
@pytest.mark.parametrize(("tokens", "hidden_size"), [(1000, 600), (600, 1000)])
def test_basis_of_every_float32_form_spans_the_same(form, tokens, hidden_size, monkeypatch):
    x_NH = layer_norm(decaying(tokens, hidden_size))
    monkeypatch.setattr(basis_module, "form_for_rows", lambda *_: form)
    monkeypatch.setattr(basis_module, "_by_full_decomposition", None)  # not fallen back to
    check_against_svd(from_rows(x_NH, 32), x_NH, 32)


@pytest.mark.parametrize(("tokens", "hidden_size"), [(40, 100), (700, 600)])
def test_basis_of_groups_together_is_that_of_each_alone(tokens, hidden_size):
    sizes = [tokens, tokens - 17, 5, 1]
    padded = torch.zeros(len(sizes), tokens, hidden_size)
    groups = [layer_norm(decaying(size, hidden_size, seed=size)) for size in sizes]
    for line, rows in zip(padded, groups, strict=True):
        line[: len(rows)] = rows
    valid = torch.arange(tokens) < torch.tensor(sizes).unsqueeze(1)
    together = basis_from_rows(padded, valid, 16)
    for index, rows in enumerate(groups):
        alone = from_rows(rows, 16)
        assert together.rank_G[index] == alone.rank_G[0] == min(16, len(rows) - 1)
        torch.testing.assert_close(
            together.eigenvalues_GK[index], alone.eigenvalues_GK[0], rtol=1e-6, atol=1e-9
        )
        assert largest_angle(together.vectors_GHK[index], alone.vectors_GHK[0]) < 1e-4
        assert largest_angle(alone.vectors_GHK[0], together.vectors_GHK[index]) < 1e-4


@pytest.mark.parametrize("shape", [{}, {"power": 0.1, "outliers": 0}, {"power": 1.4}])
def test_basis_from_rows_and_statistics_agree_in_residuals(shape):
    hidden = decaying(1900, 600, **shape)
    x_NH = layer_norm(hidden[:900])
    ways = from_rows(x_NH, 64), from_statistics(x_NH, 64)
    group = torch.zeros(1000, dtype=torch.int64)
    first, second = (residuals(hidden[900:], group, basis) for basis in ways)
    torch.testing.assert_close(first, second, rtol=2e-6, atol=0)  # float32 against float64 products
    torch.testing.assert_close(ways[0].energy_G, ways[1].energy_G, rtol=1e-6, atol=0)


@both_ways
@pytest.mark.parametrize(("tokens", "hidden_size"), [(60, 100), (1000, 600)])
def test_basis_of_tokens_on_a_plane_has_its_directions(solve, tokens, hidden_size):
    x_NH = random(tokens, 12) @ random(12, hidden_size)
    basis = solve(x_NH, 64)
    assert basis.rank_G.tolist() == [12]
    assert float(basis.energy_G) == pytest.approx(1, abs=1e-6)  # float32 rows
    assert largest_angle(basis.vectors_GHK[0], exact_svd(x_NH, 12)[1]) < 1e-5


@both_ways
@pytest.mark.parametrize(("tokens", "hidden_size"), [(60, 100), (1000, 600)])
def test_basis_of_equal_tokens_is_empty(solve, tokens, hidden_size):
    basis = solve(random(1, hidden_size).expand(tokens, hidden_size).contiguous(), 8)
    assert basis.rank_G.tolist() == [0]
    assert basis.energy_G.tolist() == [1]
    assert not basis.vectors_GHK.any()


@both_ways
def test_basis_of_equal_eigenvalues_is_orthonormal(solve):
    tokens = 800  # one-hot tokens: all 799 eigenvalues are 1, so any 64 directions are right
    basis = solve(torch.eye(tokens), 64)
    assert basis.rank_G.tolist() == [64]
    assert float(basis.energy_G) == pytest.approx(64 / (tokens - 1), rel=1e-5)  # float32 rows
    unit = basis.vectors_GHK[0].T @ basis.vectors_GHK[0]
    torch.testing.assert_close(unit, torch.eye(64).double(), atol=1e-12, rtol=0)


def test_basis_rank_is_capped_by_tokens_and_hidden_size():
    assert from_rows(random(5, 30), 64).rank_G.tolist() == [4]
    assert from_rows(random(50, 3), 64).rank_G.tolist() == [3]
    assert from_rows(random(1, 3), 64).rank_G.tolist() == [0]
