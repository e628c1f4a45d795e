"""What a weighting is made from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from megatron_resrl.config.schema import ResrlConfig
from megatron_resrl.policy.policy import Policy


@dataclass(frozen=True)
class WeightingContext:
    """The run that a weighting is part of."""

    policy: Policy
    """Whose hidden states are read."""
    settings: ResrlConfig
    """The recipe's section."""
    seed: int
    """Of the run; with step and group the key of random choices."""
    max_positive_tokens: int
    """Most tokens of correct responses that a group can have beside an incorrect response."""
    think_markers: tuple[int, int] | None = None
    """Token ids between which responses think; None: thinking is not left out."""
    temperature: float = 1.0
    """Divides the logits, as when the responses were sampled."""
    name: str = "resrl"
    """Of the weighting, as `registry.ChosenWeighting` has it."""
    options: Any = None
    """Of the weighting: a dataclass of `options.py`, or the mapping that a recipe gives one of the
    user's."""
