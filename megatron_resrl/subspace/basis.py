"""The leading directions of a group's positive tokens: a deterministic truncated SVD.

Shapes: N tokens, H hidden size, K directions kept, M columns of the search space.

Three forms of the same problem, all ending in float64:

* `exact`: full eigen-decomposition of the smaller Gram matrix (N x N or H x H) in float64; for
  small groups, and the last resort for spectra so flat that iterating does not pay.
* `rows`: block Krylov iteration with X^T (X Q) on the centred rows in their own precision, when
  one rank holds all of them. At N = 4096, H = 2560 a float64 Gram matrix alone would cost more.
* `scatter`: the same iteration on the H x H scatter in float64, when the rows are spread over
  ranks or were never kept.

The iteration grows its space until the residuals of the wanted eigenpairs are small, then by two
more blocks. Its start comes from its own generator, so a repeated call gives the same bits.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from megatron_resrl.subspace.statistics import Statistics

# Columns added to the search space at a time. Narrow blocks reach a higher polynomial degree for
# the same space: 16 converges with 288 columns where 32 needs 384, in the same time.
BLOCK = 16
# Residual of an eigenpair, relative to its eigenvalue, at which two more blocks (a factor of 10 to
# 1000 each) finish the job. The relative error of a token's residual stays below it.
TOLERANCE = 1e-5
# Directions whose share of sum |x|^2 is below this are rounding noise of the float32 layer norm
# (about 1e-16; duplicated tokens, tokens on a plane) and are dropped.
NOISE_SHARE = 1e-13
# Ritz vectors beyond the wanted ones that take part in the closing float64 problem.
REFINE_EXTRA = 16
# Ratio of the largest to the smallest wanted eigenvalue up to which float32 rows are enough (a ratio
# of 30 of the singular values). At 34,000 they moved single token weights by 4e-5, float64 by none.
FLOAT32_CONDITION = 1000.0
START_SEED = 20260500

Operator = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Basis:
    """Mean and leading directions of a group's positive tokens."""

    mean_H: Tensor
    """[H] float64 mean of the layer-normed positives."""
    vectors_HK: Tensor
    """[H, K] float64 orthonormal directions, largest variance first."""
    eigenvalues_K: Tensor
    """[K] float64 eigenvalues of the scatter: squared singular values of the centred tokens."""
    trace: Tensor
    """[] float64 trace of the scatter: total squared distance from the mean."""

    @property
    def rank(self) -> int:
        """Number of directions K."""
        return self.vectors_HK.shape[1]

    @property
    def energy(self) -> Tensor:
        """[] float64 share of the variance the directions capture; 1 where there is none."""
        if self.rank == 0:
            return torch.ones_like(self.trace)
        return self.eigenvalues_K.sum() / self.trace


def basis_from_rows(x_NH: Tensor, rank: int) -> Basis:
    """Leading directions of tokens that are all on this rank.

    Args:
        x_NH: [N, H] layer-normed tokens, float32 or float64, N >= 1. Large inputs are centred in
            place (a second copy would double the memory of the pass): do not use it afterwards.
        rank: Directions wanted; capped by min(N - 1, H) and by the numerical rank.

    Returns:
        The basis, equal to the leading right singular vectors of the centred tokens.
    """
    tokens, hidden_size = x_NH.shape
    wanted = min(rank, tokens - 1, hidden_size)
    exact = _exact_is_cheaper(tokens, hidden_size, wanted)
    if exact:
        x_NH = x_NH.double()
    mean_H = _centre(x_NH)
    trace = torch.linalg.vector_norm(x_NH, dim=1).double().square().sum()
    noise = NOISE_SHARE * (trace + tokens * mean_H.square().sum())
    pairs = None if exact else _from_products(x_NH, wanted, noise)
    if pairs is None and not exact:
        x_NH = x_NH.double()
        pairs = _from_products(x_NH, wanted, noise)
    values_K, vectors_HK = _exact(x_NH, wanted) if pairs is None else pairs
    return _without_noise(mean_H, values_K, vectors_HK, trace, noise)


def basis_from_statistics(statistics: Statistics, rank: int) -> Basis:
    """Leading directions of tokens known by their statistics only.

    Args:
        statistics: Of all tokens of the group (see `gather_statistics`), count >= 1.
        rank: Directions wanted; capped by min(count - 1, H) and by the numerical rank.

    Returns:
        The basis; agrees with `basis_from_rows` of the same tokens.
    """
    scatter_HH = statistics.symmetric_scatter()
    hidden_size, tokens = len(scatter_HH), statistics.count
    wanted = min(rank, tokens - 1, hidden_size)
    trace = scatter_HH.diagonal().sum()
    noise = NOISE_SHARE * (trace + tokens * statistics.mean_H.square().sum())
    space = None
    if not _exact_is_cheaper(hidden_size, hidden_size, wanted):
        limit = hidden_size // 2
        space = _krylov(scatter_HH.matmul, scatter_HH, wanted, tokens - 1, limit, noise)
    values_K, vectors_HK = (
        _leading(*torch.linalg.eigh(scatter_HH), wanted) if space is None else space.ritz(wanted)
    )
    return _without_noise(statistics.mean_H, values_K, vectors_HK, trace, noise)


def _centre(x_NH: Tensor) -> Tensor:
    mean_H = x_NH.mean(0)
    x_NH -= mean_H
    # What rounding left of the mean; without it outlier dimensions carry a float32 error.
    return mean_H.double() + x_NH.mean(0).double()


def _exact_is_cheaper(tokens: int, hidden_size: int, wanted: int) -> bool:
    """Compares flops (float64 counted twice); `eigh` of n x n takes the time of about 25 n^3."""
    small = min(tokens, hidden_size)
    columns = _first_size(wanted, small) + 2 * BLOCK
    exact = 2 * tokens * hidden_size * small + 25 * small**3
    krylov = 4 * tokens * hidden_size * columns + 4 * hidden_size * columns**2 + 50 * columns**3
    return exact <= krylov


def _exact(x_NH: Tensor, wanted: int) -> tuple[Tensor, Tensor]:
    if x_NH.shape[0] > x_NH.shape[1]:
        return _leading(*torch.linalg.eigh(x_NH.T @ x_NH), wanted)
    values_K, left_NK = _leading(*torch.linalg.eigh(x_NH @ x_NH.T), wanted)
    # Columns of null directions are dropped by the caller; the clamp keeps them finite.
    return values_K, x_NH.T @ (left_NK * values_K.clamp_min(1e-300).rsqrt())


def _leading(values_N: Tensor, vectors_NN: Tensor, wanted: int) -> tuple[Tensor, Tensor]:
    """The `wanted` largest of ascending eigenpairs, largest first."""
    first = len(values_N) - wanted
    return values_N[first:].flip(0), vectors_NN[:, first:].flip(1)


def _without_noise(
    mean_H: Tensor, values_K: Tensor, vectors_HK: Tensor, trace: Tensor, noise: Tensor
) -> Basis:
    kept = int((values_K > noise).sum())
    return Basis(mean_H, vectors_HK[:, :kept].contiguous(), values_K[:kept], trace)


class _Space:
    """Orthonormal basis of a block Krylov space, and its image under a symmetric operator."""

    def __init__(self, operator: Operator, start_HB: Tensor) -> None:
        self.operator = operator
        self.basis_HM = torch.linalg.qr(start_HB).Q
        self.image_HM = operator(self.basis_HM)

    def grow(self, size: int) -> None:
        """Adds blocks until the space has at least `size` columns."""
        while self.basis_HM.shape[1] < size:
            block = self.image_HM[:, -BLOCK:]
            # Twice: the first pass leaves rounding errors as large as a nearly exhausted block.
            for _ in range(2):
                block = block - self.basis_HM @ (self.basis_HM.T @ block)
                block = torch.linalg.qr(block).Q
            self.basis_HM = torch.cat((self.basis_HM, block), 1)
            self.image_HM = torch.cat((self.image_HM, self.operator(block)), 1)

    def _solve(self, wanted: int) -> tuple[Tensor, Tensor]:
        small_MM = (self.basis_HM.T @ self.image_HM).double()
        return _leading(*torch.linalg.eigh((small_MM + small_MM.T) / 2), wanted)

    def ritz(self, wanted: int) -> tuple[Tensor, Tensor]:
        """Leading Ritz values [K] and vectors [H, K] in float64."""
        values_K, weights_MK = self._solve(wanted)
        return values_K, self.basis_HM.double() @ weights_MK

    def converged(self, wanted: int, noise: Tensor) -> bool:
        """Whether the residuals of all wanted eigenpairs above the noise are small enough."""
        values_K, weights_MK = self._solve(wanted)
        # In float64, or rounding would hide how far the smallest pairs have come.
        errors_HK = self.image_HM.double() @ weights_MK
        errors_HK -= self.basis_HM.double() @ (weights_MK * values_K)
        errors_K = torch.linalg.vector_norm(errors_HK, dim=0)
        rounding = torch.finfo(self.basis_HM.dtype).eps / 2 * values_K[0]
        return bool(((errors_K <= TOLERANCE * values_K + rounding) | (values_K <= noise)).all())


def _krylov(
    operator: Operator, like: Tensor, wanted: int, rank_bound: int, limit: int, noise: Tensor
) -> _Space | None:
    """Grows a Krylov space until it holds the wanted eigenvectors.

    Args:
        operator: Symmetric positive H x H operator on [H, *] blocks.
        like: Tensor with the operator's dtype, device and last dimension H.
        wanted: Eigenpairs wanted.
        rank_bound: The operator's rank is at most this.
        limit: Columns beyond which a full eigen-decomposition is the better choice.
        noise: Eigenvalues up to this are no signal and need not converge.

    Returns:
        The space, or None where `limit` came first.
    """
    generator = torch.Generator().manual_seed(START_SEED)  # on the CPU: the same on every device
    start_HB = torch.randn(like.shape[-1], BLOCK, generator=generator)
    space = _Space(operator, start_HB.to(like))
    size = _first_size(wanted, rank_bound)
    while size <= limit:
        space.grow(size)
        if space.converged(wanted, noise):
            space.grow(size + 2 * BLOCK)
            return space
        size = _whole_blocks(size * 9 // 8)
    return None


def _first_size(wanted: int, rank_bound: int) -> int:
    return min(_whole_blocks(max(4 * wanted, 128)), _whole_blocks(rank_bound) + 2 * BLOCK)


def _whole_blocks(size: int) -> int:
    return -(-size // BLOCK) * BLOCK


def _from_products(x_NH: Tensor, wanted: int, noise: Tensor) -> tuple[Tensor, Tensor] | None:
    """Leading eigenpairs of X^T X from products with X; None where the iteration does not pay or
    the spectrum falls too steeply for the precision of the rows."""

    def gram(q_HM: Tensor) -> Tensor:
        return x_NH.T @ (x_NH @ q_HM)

    space = _krylov(gram, x_NH, wanted, len(x_NH) - 1, min(x_NH.shape) // 2, noise)
    if space is None:
        return None
    values_K, vectors_HK = _refined(space, x_NH, wanted)
    steep = values_K[0] > FLOAT32_CONDITION * values_K[values_K > noise][-1:]
    if x_NH.dtype == torch.float32 and steep.any():
        return None
    return values_K, vectors_HK


def _refined(space: _Space, x_NH: Tensor, wanted: int) -> tuple[Tensor, Tensor]:
    """Solves once more among the leading Ritz vectors, with X W instead of X^T X W.

    Rounding of X^T (X Q) is relative to the largest eigenvalue and turns the directions around the
    last wanted one into each other; that of X w_i is relative to the i-th singular value. In
    float32 this takes the error of the token residuals from 1e-6 to 1e-7.
    """
    _, leading_HM = space.ritz(min(wanted + REFINE_EXTRA, space.basis_HM.shape[1]))
    leading_HM = torch.linalg.qr(leading_HM).Q
    projected_NM = (x_NH @ leading_HM.to(x_NH.dtype)).double()
    values_K, weights_MK = _leading(*torch.linalg.eigh(projected_NM.T @ projected_NM), wanted)
    return values_K, leading_HM @ weights_MK
