"""The method in float64 NumPy with a full SVD, and token clouds to try it on."""

from __future__ import annotations

import numpy as np
import torch

from megatron_resrl.subspace import token_weights_with_reports


def reference_residuals(hidden_NH: np.ndarray, positive_N: np.ndarray, rank: int) -> np.ndarray:
    """[negatives] residuals of one group by the definition."""
    hidden_NH = hidden_NH.astype(np.float64)
    centred = hidden_NH - hidden_NH.mean(1, keepdims=True)
    x_NH = centred / np.sqrt((centred**2).mean(1, keepdims=True) + 1e-5)
    positives, negatives = x_NH[positive_N], x_NH[~positive_N]
    mean_H = positives.mean(0)
    kept = min(rank, len(positives) - 1, x_NH.shape[1])
    directions_KH = np.linalg.svd(positives - mean_H, full_matrices=False)[2][:kept]
    y_MH = negatives - mean_H
    outside = y_MH - y_MH @ directions_KH.T @ directions_KH
    return (outside**2).sum(1) / x_NH.shape[1]


def reference_weights(
    hidden_NH: np.ndarray, positive_N: np.ndarray, rank: int, floor: float = 0.1
) -> np.ndarray:
    """[N] weights of one group by the definition, quantiles 0.2 and 0.8."""
    weights_N = np.ones(len(hidden_NH))
    residual = reference_residuals(hidden_NH, positive_N, rank)
    low, high = np.quantile(residual, [0.2, 0.8])
    share = np.clip((residual - low) / (high - low), 0, 1) if high - low >= 1e-5 else 0.5
    weights_N[~positive_N] = floor + (1 - floor) * share
    return weights_N


def decaying(
    tokens: int, hidden_size: int, power: float = 0.5, outliers: int = 3, seed: int = 0
) -> torch.Tensor:
    """[tokens, hidden_size] states whose i-th singular value falls as i^-power, without a gap,
    plus a few hidden dimensions far larger than the rest, as language models have them."""
    generator = torch.Generator().manual_seed(seed)
    turn = torch.linalg.qr(torch.randn(hidden_size, hidden_size, generator=generator)).Q
    scale = torch.arange(1, hidden_size + 1) ** -power
    hidden = torch.randn(tokens, hidden_size, generator=generator) * scale @ turn
    hidden *= hidden_size**0.5
    hidden[:, :outliers] = 8 * hidden[:, :outliers] + 20
    return hidden


def mixed_group(tokens: int, hidden_size: int, seed: int = 0, **shape: float):
    """A group's hidden states and a third to a half of positive tokens."""
    hidden = decaying(tokens, hidden_size, seed=seed, **shape)
    generator = torch.Generator().manual_seed(seed + 1)
    positive = torch.rand(tokens, generator=generator) < 0.45
    positive[:4], positive[-2:] = True, False
    return hidden, positive


def weigh_group(hidden_NH: torch.Tensor, positive_N: torch.Tensor, **settings):
    """Weights [N] of one group of a right and a wrong response, and its report."""
    sides = [positive_N.nonzero().flatten(), (~positive_N).nonzero().flatten()]
    longest = max(len(side) for side in sides)
    hidden = hidden_NH.new_full((2, longest, hidden_NH.shape[1]), float("nan"))
    mask = torch.zeros(2, longest, dtype=torch.bool)
    for row, side in enumerate(sides):
        hidden[row, : len(side)], mask[row, : len(side)] = hidden_NH[side], True
    group = torch.zeros(2, dtype=torch.int64)
    weights, reports = token_weights_with_reports(
        hidden, mask, torch.tensor([True, False]), group, **settings
    )
    weights_N = torch.empty(len(hidden_NH))
    for row, side in enumerate(sides):
        weights_N[side] = weights[row, : len(side)]
    return weights_N, reports[0]
