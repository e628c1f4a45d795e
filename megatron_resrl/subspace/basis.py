"""The leading directions of a group's positive tokens: a deterministic truncated SVD.

Shapes: N tokens, H hidden size, S = min(N, H), K directions kept, M columns of the search space.

Two forms of the same problem:

* `gram`: eigenvectors of a Gram matrix in float64, either the H x H scatter (tokens spread over
  ranks, or never kept) or the smaller of X X^T and X^T X; by full eigen-decomposition when small.
* `rows`: products X^T (X Q) with the centred float32 rows, closed by a float64 problem. For large
  groups on one rank, where a float64 Gram matrix costs more than all products together.

Large problems grow a block Krylov space until the wanted directions no longer need its last two
blocks. Its start comes from its own generator, so a repeated call gives the same bits. Spectra so
flat that the space would become two thirds of everything are decomposed in full.
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
# Part of a wanted direction that may lie in the last two blocks of the space. What is missing then
# is smaller by what two blocks gain, a factor of 10 to 1000.
TOLERANCE = 1e-5
# Directions whose share of sum |x|^2 is below this are rounding noise of the float32 layer norm
# (about 1e-16; duplicated tokens, tokens on a plane) and are dropped.
NOISE_SHARE = 1e-13
# Ritz vectors beyond the wanted ones that take part in the closing float64 problem.
REFINE_EXTRA = 16
# Ratio of the largest to the smallest wanted eigenvalue up to which float32 rows are enough; 30
# between singular values. At 34,000 they move single token weights by 4e-5.
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
        x_NH: [N, H] layer-normed tokens, float32 or float64, N >= 1. Centred in place, because a
            second copy would double the memory of the pass: do not use it afterwards.
        rank: Directions wanted; capped by min(N - 1, H) and by the numerical rank.

    Returns:
        The basis, equal to the leading right singular vectors of the centred tokens.
    """
    tokens, hidden_size = x_NH.shape
    wanted = min(rank, tokens - 1, hidden_size)
    by_rows = x_NH.dtype == torch.float32 and _rows_are_cheaper(tokens, hidden_size, wanted)
    if not by_rows:
        x_NH = x_NH.double()
    mean_H = _centre(x_NH)
    trace = torch.linalg.vector_norm(x_NH, dim=1).double().square().sum()
    noise = NOISE_SHARE * (trace + tokens * mean_H.square().sum())
    pairs = _from_rows(x_NH, wanted, noise) if by_rows else None
    if pairs is None:
        pairs = _from_smaller_gram(x_NH.double(), wanted, noise)
    return _without_noise(mean_H, *pairs, trace, noise)


def basis_from_statistics(statistics: Statistics, rank: int) -> Basis:
    """Leading directions of tokens known by their statistics only.

    Args:
        statistics: Of all tokens of the group (see `gather_statistics`), count >= 1.
        rank: Directions wanted; capped by min(count - 1, H) and by the numerical rank.

    Returns:
        The basis; agrees with `basis_from_rows` of the same tokens.
    """
    scatter_HH = statistics.symmetric_scatter()
    tokens = statistics.count
    wanted = min(rank, tokens - 1, len(scatter_HH))
    trace = scatter_HH.diagonal().sum()
    noise = NOISE_SHARE * (trace + tokens * statistics.mean_H.square().sum())
    pairs = _from_gram(scatter_HH, wanted, tokens - 1, noise)
    return _without_noise(statistics.mean_H, *pairs, trace, noise)


def _centre(x_NH: Tensor) -> Tensor:
    mean_H = x_NH.mean(0)
    x_NH -= mean_H
    # What rounding left of the mean; without it outlier dimensions carry a float32 error.
    return mean_H.double() + x_NH.mean(0).double()


def _without_noise(
    mean_H: Tensor, values_K: Tensor, vectors_HK: Tensor, trace: Tensor, noise: Tensor
) -> Basis:
    kept = int((values_K > noise).sum())
    return Basis(mean_H, vectors_HK[:, :kept].contiguous(), values_K[:kept], trace)


def _krylov_flops(size: int, columns: int) -> int:
    """Orthogonalisation and the small problems of a space, without the operator's products."""
    return 4 * size * columns**2 + _eigh_flops(columns)


def _eigh_flops(size: int) -> int:
    """A full float64 eigen-decomposition takes the time of about this many float32 flops."""
    return 25 * size**3


def _rows_are_cheaper(tokens: int, hidden_size: int, wanted: int) -> bool:
    """Compares the forms in flops, float64 counted twice."""
    small = min(tokens, hidden_size)
    columns = _first_size(wanted, tokens - 1)
    rows = 4 * tokens * hidden_size * columns + _krylov_flops(hidden_size, columns)
    solve = min(_eigh_flops(small), 4 * small**2 * columns + 2 * _krylov_flops(small, columns))
    return rows < 4 * tokens * hidden_size * small + solve


def _from_smaller_gram(x_NH: Tensor, wanted: int, noise: Tensor) -> tuple[Tensor, Tensor]:
    rank_bound = len(x_NH) - 1
    if x_NH.shape[0] > x_NH.shape[1]:
        return _from_gram(x_NH.T @ x_NH, wanted, rank_bound, noise)
    values_K, left_NK = _from_gram(x_NH @ x_NH.T, wanted, rank_bound, noise)
    # Columns of null directions are dropped by the caller; the clamp keeps them finite.
    return values_K, x_NH.T @ (left_NK * values_K.clamp_min(1e-300).rsqrt())


def _from_gram(
    gram_SS: Tensor, wanted: int, rank_bound: int, noise: Tensor
) -> tuple[Tensor, Tensor]:
    """Leading eigenpairs [K], [S, K] of a positive matrix in float64."""
    size = len(gram_SS)
    columns = _first_size(wanted, rank_bound)
    if _eigh_flops(size) > 4 * size**2 * columns + 2 * _krylov_flops(size, columns):
        ritz = _krylov(gram_SS.matmul, gram_SS, wanted, rank_bound, size, noise)
        if ritz is not None:
            return ritz.values_K[:wanted], ritz.vectors()[:, :wanted]
    return _leading(*torch.linalg.eigh(gram_SS), wanted)


def _from_rows(x_NH: Tensor, wanted: int, noise: Tensor) -> tuple[Tensor, Tensor] | None:
    """Leading eigenpairs of X^T X from products with float32 rows; None where the spectrum is too
    flat for the iteration or too steep for float32."""

    def gram(q_HM: Tensor) -> Tensor:
        return x_NH.T @ (x_NH @ q_HM)

    ritz = _krylov(gram, x_NH, wanted, len(x_NH) - 1, min(x_NH.shape), noise)
    if ritz is None:
        return None
    values_K, vectors_HK = _refined(ritz, x_NH, wanted)
    smallest = values_K[values_K > noise][-1:]
    too_steep = bool((values_K[0] > FLOAT32_CONDITION * smallest).any())
    return None if too_steep else (values_K, vectors_HK)


def _leading(values_N: Tensor, vectors_NN: Tensor, wanted: int) -> tuple[Tensor, Tensor]:
    """The `wanted` largest of ascending eigenpairs, largest first."""
    first = len(values_N) - wanted
    return values_N[first:].flip(0), vectors_NN[:, first:].flip(1)


class _Space:
    """Orthonormal basis of a block Krylov space, and its image under a symmetric operator."""

    def __init__(self, operator: Operator, start_HB: Tensor) -> None:
        self.operator = operator
        self.basis_HM = torch.linalg.qr(start_HB).Q
        self.image_HM = operator(self.basis_HM)
        # As large as rounding: gives an exhausted space (fewer distinct tokens than columns)
        # somewhere to grow, where QR of exact zeros would repeat columns it already has.
        size = torch.linalg.vector_norm(self.image_HM, dim=0).max()
        self.jitter_HB = torch.finfo(start_HB.dtype).eps * size * self.basis_HM

    def grow(self, size: int) -> None:
        """Adds blocks up to `size` columns, a multiple of the block."""
        first = self.basis_HM.shape[1]
        basis_HM, image_HM = (
            torch.cat((old, old.new_empty(len(old), size - first)), 1)
            for old in (self.basis_HM, self.image_HM)
        )
        for width in range(first, size, BLOCK):
            block = image_HM[:, width - BLOCK : width] + self.jitter_HB.roll(width, 0)
            known_HM = basis_HM[:, :width]
            # Twice: the first pass leaves rounding errors as large as a nearly exhausted block.
            for _ in range(2):
                block = torch.linalg.qr(block - known_HM @ (known_HM.T @ block)).Q
            basis_HM[:, width : width + BLOCK] = block
            image_HM[:, width : width + BLOCK] = self.operator(block)
        self.basis_HM, self.image_HM = basis_HM, image_HM

    def ritz(self, wanted: int) -> _Ritz:
        """The leading Ritz pairs, solved in float64."""
        small_MM = (self.basis_HM.T @ self.image_HM).double()
        values_K, weights_MK = _leading(*torch.linalg.eigh((small_MM + small_MM.T) / 2), wanted)
        return _Ritz(values_K, weights_MK, self.basis_HM)


@dataclass(frozen=True)
class _Ritz:
    """Approximate eigenpairs, the vectors as combinations of a basis."""

    values_K: Tensor
    weights_MK: Tensor
    basis_HM: Tensor

    def vectors(self) -> Tensor:
        """[H, K] float64."""
        return self.basis_HM.double() @ self.weights_MK

    def converged(self, wanted: int, noise: Tensor) -> bool:
        """Whether the last two blocks no longer mattered to the wanted pairs above the noise."""
        values_K, weights_MK = self.values_K[:wanted], self.weights_MK[:, :wanted]
        news_K = torch.linalg.vector_norm(weights_MK[-2 * BLOCK :], dim=0) * values_K
        rounding = torch.finfo(self.basis_HM.dtype).eps / 2 * values_K[0]
        return bool(((news_K <= TOLERANCE * values_K + rounding) | (values_K <= noise)).all())


def _krylov(
    operator: Operator, like: Tensor, wanted: int, rank_bound: int, full_size: int, noise: Tensor
) -> _Ritz | None:
    """Grows a Krylov space until it holds the wanted eigenvectors.

    Args:
        operator: Symmetric positive H x H operator on [H, *] blocks.
        like: Tensor with the operator's dtype, device and last dimension H.
        wanted: Eigenpairs that have to converge.
        rank_bound: The operator's rank is at most this.
        full_size: Size of the smaller Gram matrix. A space of two thirds of it is given up: a full
            eigen-decomposition is the better choice then.
        noise: Eigenvalues up to this are no signal and need not converge.

    Returns:
        At least `wanted` pairs (REFINE_EXTRA more where the space has them), or None where
        the space became too large.
    """
    generator = torch.Generator().manual_seed(START_SEED)  # on the CPU: the same on every device
    start_HB = torch.randn(like.shape[-1], BLOCK, generator=generator)
    space = _Space(operator, start_HB.to(like))
    size = _first_size(wanted, rank_bound)
    while 3 * size <= 2 * full_size:
        space.grow(size)
        ritz = space.ritz(min(wanted + REFINE_EXTRA, size))
        if ritz.converged(wanted, noise):
            return ritz
        size = _whole_blocks(size * 9 // 8)
    return None


def _first_size(wanted: int, rank_bound: int) -> int:
    return min(_whole_blocks(max(4 * wanted, 128)), _whole_blocks(rank_bound)) + 2 * BLOCK


def _whole_blocks(size: int) -> int:
    return -(-size // BLOCK) * BLOCK


def _refined(ritz: _Ritz, x_NH: Tensor, wanted: int) -> tuple[Tensor, Tensor]:
    """Solves once more among the leading Ritz vectors W, with X W instead of X^T X W.

    Rounding of X^T (X Q) is relative to the largest eigenvalue and turns the directions around the
    last wanted one into each other; that of X w_i is relative to the i-th singular value. In
    float32 this takes the error of the token residuals from 1e-6 to 1e-7.
    """
    leading_HM = torch.linalg.qr(ritz.vectors()).Q
    projected_NM = (x_NH @ leading_HM.to(x_NH.dtype)).double()
    values_K, weights_MK = _leading(*torch.linalg.eigh(projected_NM.T @ projected_NM), wanted)
    return values_K, leading_HM @ weights_MK
