"""Token weights of a group written down a second time, from the paper's formulas (2605.00380).

Nothing of the product is imported.

Shapes: N positive tokens, M negative tokens, H hidden size, K directions.
"""

from __future__ import annotations

import hashlib

import numpy as np
import torch


def residual_weights(positives_NH: np.ndarray, negatives_MH: np.ndarray, resrl: dict) -> np.ndarray:
    """[M] weights of a group's incorrect tokens, from their states and those of correct ones."""
    x_NH, x_MH = _layer_norm(positives_NH), _layer_norm(negatives_MH)
    mean_H = x_NH.mean(0)
    kept = min(resrl["rank"], len(x_NH) - 1, x_NH.shape[1])
    _, singular, v_KH = np.linalg.svd(x_NH - mean_H, full_matrices=False)
    # Of tokens that are the same, as the first of responses to one prompt have the same state, one
    # direction is left without variance: what an SVD returns for it is arbitrary, and no part of
    # the subspace.
    v_KH = v_KH[:kept][singular[:kept] > 1e-6 * singular[0]]
    y_MH = x_MH - mean_H
    outside_MH = y_MH - y_MH @ v_KH.T @ v_KH
    residual_M = (outside_MH**2).sum(1) / x_MH.shape[1]
    low, high = np.quantile(residual_M, resrl["quantiles"])
    floor = resrl["floor"]
    if high - low < 1e-5:
        return np.full(len(x_MH), (floor + 1) / 2)
    return floor + (1 - floor) * np.clip((residual_M - low) / (high - low), 0, 1)


def _layer_norm(hidden_NH: np.ndarray) -> np.ndarray:
    centred_NH = hidden_NH - hidden_NH.mean(1, keepdims=True)
    return centred_NH / np.sqrt((centred_NH**2).mean(1, keepdims=True) + 1e-5)


def group_key(seed: int, step: int, group: int) -> int:
    """Of a group's random choices: the run's published rule."""
    digest = hashlib.blake2b(f"{seed}/{step}/{group}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def random_weights(
    weights_M: np.ndarray, share_M: np.ndarray, key: int, floor: float
) -> np.ndarray:
    """[M] dealt by shares, then moved towards 1 or the floor until they have the same mass."""
    share_M = share_M if share_M.any() else np.ones(len(share_M))
    generator = torch.Generator().manual_seed(key ^ 0x5DEECE66D)
    piece_M = torch.randperm(len(weights_M), generator=generator).numpy()
    inside_M = torch.rand(len(weights_M), dtype=torch.float64, generator=generator).numpy()
    uniform_M = (piece_M + inside_M) / len(weights_M)
    ends_M = np.cumsum(share_M)
    drawn_M = weights_M[[int((ends_M <= u * ends_M[-1]).sum()) for u in uniform_M]]
    missing = (share_M * (weights_M - drawn_M)).sum()
    if missing > 0:
        return drawn_M + (1 - drawn_M) * missing / (share_M * (1 - drawn_M)).sum()
    return drawn_M + (drawn_M - floor) * missing / (share_M * (drawn_M - floor)).sum()
