"""Tokens of both kinds and an output matrix, for tests of their gradients' interference."""

from __future__ import annotations

import torch

POSITIVES, NEGATIVES, HIDDEN, VOCABULARY, PADDED = 5, 7, 6, 23, 32


def tokens(seed: int = 0, dtype: torch.dtype = torch.float64):
    """Hidden states and targets of both kinds, and an output matrix with padding rows."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)

    def targets(count: int) -> torch.Tensor:
        return torch.randint(VOCABULARY, (count,), generator=generator)

    positive, negative = normal(POSITIVES, HIDDEN), normal(NEGATIVES, HIDDEN)
    return positive, targets(POSITIVES), negative, targets(NEGATIVES), normal(PADDED, HIDDEN)
