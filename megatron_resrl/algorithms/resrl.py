"""ResRL: GRPO whose incorrect tokens count by their distance to the subspace of the correct ones.

Source: arXiv 2605.00380. The distances become weights in `megatron_resrl.subspace`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from megatron_resrl.algorithms.algorithm import CLIP_SETTINGS, RESRL_SETTINGS
from megatron_resrl.algorithms.grpo import GRPO


@dataclass(frozen=True)
class ResRL(GRPO):
    """GRPO with `algorithm.weighting: resrl`: A <- 0.1 A of positives, A <- w_t A of negatives."""

    name: ClassVar[str] = "resrl"
    source: ClassVar[str] = "arXiv 2605.00380"
    published_with: ClassVar[Mapping[str, Any]] = {"algorithm.aggregation": "sequence_mean"}
    weighted: ClassVar[bool] = True
    settings: ClassVar[Mapping[str, str]] = {**CLIP_SETTINGS, **RESRL_SETTINGS}

    positive_weight: float = 0.1
    """`resrl.positive_weight`."""
