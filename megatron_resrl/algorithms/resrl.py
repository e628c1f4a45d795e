"""ResRL: GRPO whose wrong tokens count by their distance to the right answers' subspace.

Source: arXiv 2605.00380. The distances become weights in `megatron_resrl.subspace`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, get_args

import torch
from torch import Tensor

from megatron_resrl.algorithms.advantages import finite_vector
from megatron_resrl.algorithms.algorithm import CLIP_SETTINGS
from megatron_resrl.algorithms.grpo import GRPO
from megatron_resrl.algorithms.options import require_choice, require_not_negative

Positives = Literal["score", "advantage"]


@dataclass(frozen=True)
class ResRL(GRPO):
    """Positives: A <- positive_weight A. Negatives: A <- w_t A, token by token."""

    name: ClassVar[str] = "resrl"
    source: ClassVar[str] = "arXiv 2605.00380"
    published_with: ClassVar[Mapping[str, Any]] = {"algorithm.aggregation": "sequence_mean"}
    needs_hidden_states: ClassVar[bool] = True
    settings: ClassVar[Mapping[str, str]] = {
        **CLIP_SETTINGS,
        "positive_weight": "resrl.positive_weight",
        "positives": "resrl.positives",
    }

    positive_weight: float = 0.1
    """`resrl.positive_weight`."""
    positives: Positives = "score"
    """`resrl.positives`."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_not_negative("positive_weight", self.positive_weight)
        require_choice("positives", self.positives, get_args(Positives))

    def positive(self, scores: Tensor, advantages: Tensor) -> Tensor:
        """Responses with a score above 0, or with an advantage above 0."""
        correct = super().positive(scores, advantages)
        return correct if self.positives == "score" else finite_vector("advantages", advantages) > 0

    def token_advantages(
        self, advantages: Tensor, positive: Tensor, token_weights: Tensor
    ) -> Tensor:
        """Positives: positive_weight A. Negatives: w_t A, token by token."""
        if not advantages.shape == positive.shape == token_weights.shape:
            raise ValueError(
                f"advantages {list(advantages.shape)}, positive {list(positive.shape)} and "
                f"token_weights {list(token_weights.shape)} must have the same shape"
            )
        weights = token_weights.to(advantages.dtype)
        return advantages * torch.where(positive, self.positive_weight, weights)
