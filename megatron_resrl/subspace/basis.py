"""The leading directions of groups' positive tokens: a deterministic truncated SVD.

Shapes: G groups, N tokens of a group (padded), H hidden size, S = min(N, H), K directions.

The statistics of tokens that were never kept, or are spread over ranks, are decomposed as they are,
in float64. For rows there are three forms of the same problem, chosen by size:

* few tokens or a narrow model: full decomposition of the smaller of X X^T and X^T X in float64;
* middle sizes: a block Krylov space of that matrix in float32, whose leading vectors are then
  combined anew by a float64 problem of their products with the rows themselves, which takes the
  matrix's rounding out again;
* large: a block Krylov space of products X (X^T Q), where any Gram matrix costs more than all of
  them together.

All groups of a call go through the same batched operations. The host waits for the device once
per call, and once more for each time a search space has to grow. Spectra so flat that the space
would become two thirds of everything, or so steep that float32 loses the last direction, are
decomposed in full.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from megatron_resrl.subspace.krylov import (
    BLOCK,
    GAIN,
    MatrixSpace,
    RitzPairs,
    RowSpace,
    leading_pairs,
    orthonormal,
)
from megatron_resrl.subspace.rows import ROWS
from megatron_resrl.subspace.statistics import PANEL, Statistics

# Directions whose share of sum |x|^2 is below this are rounding noise of the float32 layer norm
# (about 1e-16; duplicated tokens, tokens on a plane) and are dropped.
NOISE_SHARE = 1e-13
# Ratio of the largest to the smallest wanted eigenvalue up to which float32 rows are enough; 30
# between singular values. At 34,000 they move single token weights by 4e-5.
FLOAT32_CONDITION = 1000.0
# Leading vectors of a float32 Gram matrix, beyond the wanted ones, that are combined anew.
REFINE_EXTRA = 32
# Products with few columns take this much longer per flop than those of large matrices.
NARROW = 2
# A full float64 eigen-decomposition of n columns takes the time of about this times n^3 float32
# flops on a CPU.
EIGEN_FLOPS = 25


@dataclass(frozen=True)
class Basis:
    """Mean and leading directions of each group's positive tokens."""

    mean_GH: Tensor
    """[G, H] float64 mean of the layer-normed positives."""
    vectors_GHK: Tensor
    """[G, H, K] float64 orthonormal directions, largest variance first; a group with fewer
    directions than K has zeros in their place."""
    eigenvalues_GK: Tensor
    """[G, K] float64 eigenvalues of the scatter: squared singular values of the centred tokens;
    zero where there is no direction."""
    trace_G: Tensor
    """[G] float64 trace of the scatter: total squared distance from the mean."""

    @property
    def rank_G(self) -> Tensor:
        """[G] int64 number of directions."""
        return (self.eigenvalues_GK > 0).sum(1)

    @property
    def energy_G(self) -> Tensor:
        """[G] float64 share of the variance the directions capture; 1 where there is none."""
        captured_G = self.eigenvalues_GK.sum(1)
        return torch.where(self.rank_G > 0, captured_G / self.trace_G, 1.0)

    @property
    def nbytes(self) -> int:
        """Memory of the tensors."""
        return self.mean_GH.nbytes + self.vectors_GHK.nbytes + self.eigenvalues_GK.nbytes


def basis_from_rows(x_GNH: Tensor, valid_GN: Tensor, rank: int) -> Basis:
    """Leading directions of tokens that are all on this rank.

    Args:
        x_GNH: [G, N, H] layer-normed tokens, float32 or float64. Centred in place, because a
            second copy would double the memory of the pass: do not use it afterwards.
        valid_GN: [G, N] bool: the places that hold a token; the others are zero.
        rank: Directions wanted; capped by min(tokens - 1, H) and by the numerical rank.

    Returns:
        The basis, equal to the leading right singular vectors of the centred tokens, K = rank.
    """
    _, tokens, hidden_size = x_GNH.shape
    wanted = max(min(rank, tokens - 1, hidden_size), 0)
    # Layer-normed tokens -> centred tokens, and the part of their variance that is rounding.
    mean_GH = _centre(x_GNH, valid_GN)
    trace_G = _squares(x_GNH)
    noise_G = NOISE_SHARE * (trace_G + valid_GN.sum(1) * mean_GH.square().sum(1))
    # The form with the least arithmetic; None where float32 is not enough for the spectrum.
    pairs = None
    if x_GNH.dtype == torch.float32:
        solve = _FLOAT32_FORMS.get(form_for_rows(tokens, hidden_size, wanted))
        pairs = solve(x_GNH, wanted, noise_G) if solve else None
    if pairs is None:
        pairs = _by_full_decomposition(x_GNH, wanted, noise_G)
    return _basis(mean_GH, *pairs, trace_G, noise_G, rank)


def basis_from_statistics(statistics: Statistics, rank: int) -> Basis:
    """Leading directions of tokens known by their statistics only.

    Args:
        statistics: Of all tokens of the groups (see `gather_statistics`).
        rank: Directions wanted; capped by min(count - 1, H) and by the numerical rank.

    Returns:
        The basis; agrees with `basis_from_rows` of the same tokens.
    """
    # [G, H, H] float64: the sum of all ranks, both triangles.
    scatter_GHH = statistics.symmetric_scatter()
    wanted = min(rank, scatter_GHH.shape[1])
    trace_G = scatter_GHH.diagonal(dim1=1, dim2=2).sum(1)
    noise_G = trace_G + statistics.count_G * statistics.mean_GH.square().sum(1)
    noise_G = NOISE_SHARE * noise_G
    pairs = _from_gram(scatter_GHH, wanted, noise_G)
    return _basis(statistics.mean_GH, *pairs, trace_G, noise_G, rank)


def _centre(x_GNH: Tensor, valid_GN: Tensor) -> Tensor:
    count_G1 = valid_GN.sum(1, keepdim=True).clamp_min(1)
    mean_GH = x_GNH.sum(1) / count_G1
    for part, valid in zip(x_GNH.split(ROWS, 1), valid_GN.split(ROWS, 1), strict=True):
        part -= mean_GH.unsqueeze(1) * valid.unsqueeze(2)
    # What rounding left of the mean; without it outlier dimensions carry a float32 error.
    return mean_GH.double() + x_GNH.sum(1).double() / count_G1


def _squares(x_GNH: Tensor) -> Tensor:
    return torch.linalg.vector_norm(x_GNH, dim=2).double().square().sum(1)


def _basis(
    mean_GH: Tensor,
    values_GK: Tensor,
    vectors_GHK: Tensor,
    trace_G: Tensor,
    noise_G: Tensor,
    rank: int,
) -> Basis:
    """Drops directions that are noise, and pads with zeros to `rank` columns."""
    kept_GK = values_GK > noise_G.unsqueeze(1)
    missing = rank - values_GK.shape[1]
    values_GK = torch.nn.functional.pad(values_GK * kept_GK, (0, missing))
    vectors_GHK = torch.where(kept_GK.unsqueeze(1), vectors_GHK, 0.0)
    vectors_GHK = torch.nn.functional.pad(_orthonormal_columns(vectors_GHK), (0, missing))
    return Basis(mean_GH, vectors_GHK, values_GK, trace_G)


def _orthonormal_columns(vectors_GHK: Tensor) -> Tensor:
    """Orthonormalises nearly orthonormal columns to rounding; zero columns stay zero."""
    gram_GKK = vectors_GHK.mT @ vectors_GHK
    empty_GK = gram_GKK.diagonal(dim1=1, dim2=2) == 0
    gram_GKK = gram_GKK + torch.diag_embed(empty_GK.double())
    lower_GKK = torch.linalg.cholesky_ex(gram_GKK).L
    return torch.linalg.solve_triangular(lower_GKK.mT, vectors_GHK, upper=True, left=False)


def first_columns(wanted: int) -> int:
    """Columns of a search space at the first look: enough for spectra without a gap."""
    return -(-max(4 * wanted, 96) // BLOCK) * BLOCK + 3 * BLOCK


Form = Literal["full", "gram", "rows"]


def form_for_rows(tokens: int, hidden_size: int, wanted: int) -> Form:
    """The form with the least arithmetic for the float32 rows of a group.

    Counts float32 operations, and others as the float32 operations that take as long on a CPU:
    float64 twice, products with few columns `NARROW` times.

    Args:
        tokens: N.
        hidden_size: H.
        wanted: Directions, at most min(N, H).
    """
    small, columns = min(tokens, hidden_size), first_columns(wanted)
    if 3 * columns > 2 * small:
        return "full"
    area = tokens * hidden_size
    half_gram, refinement = area * small, 6 * area * wanted
    operator = 2 * small**2 * columns
    flops: dict[Form, int] = {
        "full": 4 * area * small + EIGEN_FLOPS * small**3,
        "gram": half_gram + refinement + _space_flops(small, columns, operator),
        "rows": _space_flops(small, columns, 4 * area * columns),
    }
    return min(flops, key=flops.__getitem__)


def space_pays(size: int, wanted: int) -> bool:
    """Whether a Krylov space of a float64 matrix takes less than half of its decomposition."""
    columns = first_columns(wanted)
    return EIGEN_FLOPS * size**3 > 2 * _space_flops(size, columns, 2 * size**2 * columns)


def _space_flops(size: int, columns: int, operator: int) -> int:
    """Of a Krylov space: its operator, orthogonalisation, and the small problem."""
    around = 4 * size * columns**2
    return NARROW * (operator + around) + 2 * around + EIGEN_FLOPS * columns**3


Pairs = tuple[Tensor, Tensor]
"""Leading eigenvalues [G, K] and directions [G, H, K], both float64."""


def _by_full_decomposition(x_GNH: Tensor, wanted: int, noise_G: Tensor) -> Pairs:
    """By float64 Gram matrices, a few groups at a time: the float64 copy stays as small as that
    of half of the rows."""
    groups = max(1, len(x_GNH) // 4)
    parts = [
        _from_smaller_gram(x.double(), wanted, noise)
        for x, noise in zip(x_GNH.split(groups), noise_G.split(groups), strict=True)
    ]
    values, vectors = zip(*parts, strict=True)
    return torch.cat(values), torch.cat(vectors)


def _from_smaller_gram(x_GNH: Tensor, wanted: int, noise_G: Tensor) -> Pairs:
    if x_GNH.shape[1] > x_GNH.shape[2]:
        return _from_gram(x_GNH.mT @ x_GNH, wanted, noise_G)
    values_GK, left_GNK = _from_gram(x_GNH @ x_GNH.mT, wanted, noise_G)
    return values_GK, x_GNH.mT @ (left_GNK * _inverse_root(values_GK))


def _inverse_root(values_GK: Tensor) -> Tensor:
    # Null directions are dropped later; the clamp keeps them finite.
    return values_GK.clamp_min(1e-300).rsqrt().unsqueeze(1)


def _from_gram(gram_GSS: Tensor, wanted: int, noise_G: Tensor) -> Pairs:
    """Leading eigenpairs [G, K], [G, S, K] of positive matrices in float64."""
    size = gram_GSS.shape[1]
    if space_pays(size, wanted):
        space = MatrixSpace(gram_GSS)
        pairs = _converged_pairs(space, wanted, wanted, size, noise_G)
        if pairs is not None:
            return pairs.values_GK, space.vectors(pairs)
    pairs = leading_pairs(gram_GSS, wanted)
    return pairs.values_GK, pairs.weights_GMK


def _by_rows(x_GNH: Tensor, wanted: int, noise_G: Tensor) -> Pairs | None:
    """From products with float32 rows; None where a spectrum is too flat or too steep."""
    space = RowSpace(x_GNH)
    pairs = _converged_pairs(space, wanted, wanted, min(x_GNH.shape[1:]), noise_G)
    if pairs is None or _needs_float64(pairs.values_GK, noise_G):
        return None
    return pairs.values_GK, space.vectors(pairs)


def _by_gram(x_GNH: Tensor, wanted: int, noise_G: Tensor) -> Pairs | None:
    """From the smaller float32 Gram matrix; None where a spectrum is too flat or too steep."""
    tall = x_GNH.shape[1] > x_GNH.shape[2]
    rows_GSL = x_GNH.mT if tall else x_GNH
    space = MatrixSpace(_half_made_gram(rows_GSL))
    found = min(wanted + REFINE_EXTRA, rows_GSL.shape[1])
    pairs = _converged_pairs(space, wanted, found, rows_GSL.shape[1], noise_G)
    if pairs is None:
        return None
    leading_GSK = orthonormal(space.vectors(pairs))
    image_GLK = (rows_GSL.mT @ leading_GSK.to(x_GNH.dtype)).double()
    pairs = leading_pairs(image_GLK.mT @ image_GLK, wanted)
    if _needs_float64(pairs.values_GK, noise_G):
        return None
    if tall:
        return pairs.values_GK, leading_GSK @ pairs.weights_GMK
    return pairs.values_GK, image_GLK @ (pairs.weights_GMK * _inverse_root(pairs.values_GK))


_FLOAT32_FORMS = {"gram": _by_gram, "rows": _by_rows}


def _half_made_gram(rows_GSL: Tensor) -> Tensor:
    """[G, S, S] products of all pairs of rows, one triangle computed and mirrored."""
    size = rows_GSL.shape[1]
    gram_GSS = rows_GSL.new_empty(len(rows_GSL), size, size)
    for start in range(0, size, PANEL):
        panel_GPS = rows_GSL[:, start : start + PANEL] @ rows_GSL[:, start:].mT
        gram_GSS[:, start : start + PANEL, start:] = panel_GPS
        gram_GSS[:, start:, start : start + PANEL] = panel_GPS.mT
    return gram_GSS


def _needs_float64(values_GK: Tensor, noise_G: Tensor) -> bool:
    """Whether float32 is not enough for the smallest direction above the noise of any group."""
    steep_GK = values_GK[:, :1] > FLOAT32_CONDITION * values_GK
    return bool((steep_GK & (values_GK > noise_G.unsqueeze(1))).any())


def _converged_pairs(
    space: RowSpace | MatrixSpace, wanted: int, found: int, full_size: int, noise_G: Tensor
) -> RitzPairs | None:
    """Grows a Krylov space until it holds the wanted eigenvectors of all groups.

    Args:
        space: Holds its first block.
        wanted: Eigenpairs that have to converge.
        found: Eigenpairs returned, at least `wanted`.
        full_size: Size of the smaller Gram matrix. At two thirds of this size the Krylov space is
            abandoned, because a full eigen-decomposition is faster.
        noise_G: Eigenvalues up to this bound are noise and need not converge.

    Returns:
        The pairs, or None where the space became too large.
    """
    size = first_columns(wanted)
    while 3 * size <= 2 * full_size:
        space.grow(size)
        pairs = space.ritz(found)
        excess = float(pairs.excess(wanted, noise_G, space.rounding))
        if excess <= 1:
            return pairs
        size += BLOCK * math.ceil(math.log(min(excess, GAIN**4), GAIN))
    return None
