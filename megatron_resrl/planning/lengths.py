"""How long responses are, where only their mean and their limit are known.

Lengths are taken to be exponential, cut off at the limit: of all distributions with a given mean it
assumes the least, and a response's chance to end does not depend on how long it already is.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache, cached_property

_STEPS = 512
"""Of numeric integrals."""


@dataclass(frozen=True)
class Lengths:
    """Response lengths in tokens."""

    mean: float
    """At most `limit`."""
    limit: int
    """`rollout.max_response_length`."""

    @cached_property
    def scale(self) -> float:
        """The s of exp(-t / s), such that min(length, limit) has the mean: s (1 - exp(-limit / s)).
        Infinite: all responses reach the limit."""
        if self.mean >= 0.999 * self.limit:
            return math.inf
        low, high = 0.0, 1e6 * self.limit
        for _ in range(200):
            middle = (low + high) / 2
            if -middle * math.expm1(-self.limit / middle) < self.mean:
                low = middle
            else:
                high = middle
        return high

    def still_running(self, tokens: float) -> float:
        """Share of responses that are longer than so many tokens."""
        return math.exp(-tokens / self.scale) if tokens < self.limit else 0.0

    def longest_of(self, count: int) -> float:
        """Mean length of the longest of `count` responses."""
        return _longest_of(self.scale, self.limit, count)


@cache
def _longest_of(scale: float, limit: int, count: int) -> float:
    """The integral of P(longest > t) = 1 - (1 - exp(-t / scale))^count, up to the limit."""
    width = limit / _STEPS
    middles = ((number + 0.5) * width for number in range(_STEPS))
    return sum(width * (1 - (1 - math.exp(-t / scale)) ** count) for t in middles)
