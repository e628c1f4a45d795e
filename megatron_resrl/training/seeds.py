"""Names of training's random streams: each is keyed by (run seed, purpose, ...)."""

from __future__ import annotations

import numpy as np

ROLLOUT = 0
SUBSPACE = 2


def subspace_seed(seed: int, step: int, group: int) -> int:
    """Key of the positives' sampling in one group of one step."""
    return int(np.random.SeedSequence([seed, SUBSPACE, step, group]).generate_state(1)[0])
