"""Clocks of hosts against each other. This module does not need torch."""

from __future__ import annotations

import statistics
from collections.abc import Mapping

SKEW_S = 2.0
"""Seconds that clocks of hosts may differ: more than ranks need to leave a barrier."""


def clock_skews(clocks: Mapping[str, float]) -> dict[str, float]:
    """Seconds by which each host's clock is ahead of the median host's, by host.

    Args:
        clocks: Of each host, asked for at the same moment.
    """
    # One of the clocks, not a mean of two.
    middle = statistics.median_low(clocks.values())
    return {host: clock - middle for host, clock in clocks.items()}
