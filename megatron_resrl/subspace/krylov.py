"""Block Krylov spaces of many symmetric operators at once.

Shapes: G groups, S size of the operator, M columns of the space, B columns of a block, H hidden.

A space grows from a fixed random block, its columns kept orthonormal, until the wanted directions
no longer need its last block. The random numbers come from a generator of their own, so a repeated
call gives the same bits.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from megatron_resrl.platform.distributed import on_device

# Columns added to the search space at a time. Products with 16 columns are bound by memory and
# cost two thirds of those with 32; 64 columns need a space a third larger.
BLOCK = 32
# Part of a wanted direction that may lie in the last block of the space. What is missing then is
# smaller by what one block gains, a factor of GAIN or more.
TOLERANCE = 5e-4
GAIN = 5
START_SEED = 20260500


@dataclass(frozen=True)
class RitzPairs:
    """Approximate leading eigenpairs, the vectors as combinations of the space's columns."""

    values_GK: Tensor
    """[G, K] float64, largest first."""
    weights_GMK: Tensor
    """[G, M, K] float64."""

    def excess(self, wanted: int, noise_G: Tensor, rounding: float) -> Tensor:
        """[] float64: how much too large the last block's part in the wanted pairs still is.

        At most 1 once the space holds all of them; pairs below the noise do not matter.

        Args:
            wanted: Number of leading pairs of each group.
            noise_G: [G] eigenvalues up to this bound are noise.
            rounding: Unit of the number format of the space.
        """
        values_GK = self.values_GK[:, :wanted]
        last_GBK = self.weights_GMK[:, -BLOCK:, :wanted]
        news_GK = torch.linalg.vector_norm(last_GBK, dim=1) * values_GK
        allowed_GK = TOLERANCE * values_GK + rounding / 2 * values_GK[:, :1]
        silent_GK = values_GK <= noise_G.unsqueeze(1)
        return (news_GK / allowed_GK).masked_fill(silent_GK, 0.0).max()


class RowSpace:
    """Krylov space of X X^T from the rows X of every group, and its image under X^T.

    The space lies on the side of the tokens: the leading directions on the side of the hidden
    states are then combinations of `X^T basis`, which is one multiplication by X closer to them
    than the space itself, and needs no product of its own.
    """

    def __init__(self, x_GNH: Tensor) -> None:
        self.x_GNH = x_GNH
        self.rounding = torch.finfo(x_GNH.dtype).eps
        start_HB = _start(x_GNH.shape[2], x_GNH)
        self.basis_GNM = orthonormal(x_GNH @ start_HB)
        self.image_GHM = x_GNH.mT @ self.basis_GNM

    def grow(self, size: int) -> None:
        """Adds blocks up to `size` columns, a multiple of the block."""
        width = self.basis_GNM.shape[2]
        self.basis_GNM = _widened(self.basis_GNM, size)
        self.image_GHM = _widened(self.image_GHM, size)
        for start in range(width, size, BLOCK):
            known_GNM = self.basis_GNM[:, :, :start]
            block_GNB = self.x_GNH @ self.image_GHM[:, :, start - BLOCK : start]
            block_GNB = _next_block(block_GNB, known_GNM)
            self.basis_GNM[:, :, start : start + BLOCK] = block_GNB
            self.image_GHM[:, :, start : start + BLOCK] = self.x_GNH.mT @ block_GNB

    def ritz(self, wanted: int) -> RitzPairs:
        """The leading Ritz pairs of X X^T, solved in float64."""
        image_GHM = self.image_GHM.double()
        return leading_pairs(image_GHM.mT @ image_GHM, wanted)

    def vectors(self, pairs: RitzPairs) -> Tensor:
        """[G, H, K] float64 directions on the side of the hidden states, nearly orthonormal."""
        scale_GK = pairs.values_GK.clamp_min(1e-300).rsqrt()
        return self.image_GHM.double() @ (pairs.weights_GMK * scale_GK.unsqueeze(1))


class MatrixSpace:
    """Krylov space of a symmetric positive matrix of every group, and its image."""

    def __init__(self, matrix_GSS: Tensor) -> None:
        self.matrix_GSS = matrix_GSS
        self.rounding = torch.finfo(matrix_GSS.dtype).eps
        start_SB = _start(matrix_GSS.shape[2], matrix_GSS)
        self.basis_GSM = orthonormal(matrix_GSS @ start_SB)
        self.image_GSM = matrix_GSS @ self.basis_GSM

    def grow(self, size: int) -> None:
        """Adds blocks up to `size` columns, a multiple of the block."""
        width = self.basis_GSM.shape[2]
        self.basis_GSM = _widened(self.basis_GSM, size)
        self.image_GSM = _widened(self.image_GSM, size)
        for start in range(width, size, BLOCK):
            block_GSB = self.image_GSM[:, :, start - BLOCK : start]
            block_GSB = _next_block(block_GSB, self.basis_GSM[:, :, :start])
            self.basis_GSM[:, :, start : start + BLOCK] = block_GSB
            self.image_GSM[:, :, start : start + BLOCK] = self.matrix_GSS @ block_GSB

    def ritz(self, wanted: int) -> RitzPairs:
        """The leading Ritz pairs, solved in float64."""
        small_GMM = (self.basis_GSM.mT @ self.image_GSM).double()
        return leading_pairs((small_GMM + small_GMM.mT) / 2, wanted)

    def vectors(self, pairs: RitzPairs) -> Tensor:
        """[G, S, K] float64 directions."""
        return self.basis_GSM.double() @ pairs.weights_GMK


def orthonormal(block_GSB: Tensor) -> Tensor:
    """Orthonormal columns that span the block's, by two Cholesky factorisations.

    All groups in a few batched calls, where a QR factorisation is one call per group. Directions
    below the float64 noise of the block's Gram matrix come out shorter than 1, not wrong.
    """
    return _cholesky_columns(_cholesky_columns(block_GSB))


def _cholesky_columns(block_GSB: Tensor) -> Tensor:
    """One factorisation in float64: orthonormal up to rounding times the block's condition."""
    wide_GSB = block_GSB.double()
    gram_GBB = wide_GSB.mT @ wide_GSB
    size_G = gram_GBB.diagonal(dim1=1, dim2=2).amax(1)
    # Keeps the factor finite where columns depend on each other, or are zero.
    shift_G = 1e-15 * gram_GBB.shape[1] * size_G + torch.finfo(torch.float64).tiny
    gram_GBB.diagonal(dim1=1, dim2=2).add_(shift_G.unsqueeze(1))
    lower_GBB = torch.linalg.cholesky_ex(gram_GBB).L
    solved = torch.linalg.solve_triangular(lower_GBB.mT, wide_GSB, upper=True, left=False)
    return solved.to(block_GSB.dtype)


def _start(size: int, like: Tensor) -> Tensor:
    # On the CPU: the same random numbers for every device.
    generator = torch.Generator().manual_seed(START_SEED)
    block = torch.randn(size, BLOCK, generator=generator)
    return on_device(block.to(like.dtype), like.device)


def _widened(old_GSM: Tensor, size: int) -> Tensor:
    wide_GSM = old_GSM.new_empty((*old_GSM.shape[:2], size))
    wide_GSM[:, :, : old_GSM.shape[2]] = old_GSM
    return wide_GSM


def _next_block(block_GSB: Tensor, known_GSM: Tensor) -> Tensor:
    """The part of a block outside the known columns, orthonormal.

    An exhausted space (fewer distinct tokens than columns) leaves rounding noise, which is not
    orthogonal to the known columns; repeating takes what it holds of them away. The second round
    starts from nearly orthonormal columns, so one factorisation each is enough.
    """
    for _ in range(2):
        block_GSB = _cholesky_columns(block_GSB - known_GSM @ (known_GSM.mT @ block_GSB))
    return block_GSB


def leading_pairs(matrix_GSS: Tensor, wanted: int) -> RitzPairs:
    """The `wanted` largest eigenpairs of symmetric matrices, by full decomposition."""
    values_GS, vectors_GSS = torch.linalg.eigh(matrix_GSS)
    first = values_GS.shape[1] - wanted
    return RitzPairs(values_GS[:, first:].flip(1), vectors_GSS[:, :, first:].flip(2))
