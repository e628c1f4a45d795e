"""A score that is one thing as a verdict and another as a reward."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Credit:
    """What a function of ours may return in place of a number."""

    score: float
    """Above 0: the response is correct. Evaluations count it."""
    reward: float
    """What advantages are made of; may be above 0 for a response that is not correct."""
