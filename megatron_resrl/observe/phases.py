"""Phases of a step: timed, and named in the error when a rank is lost in one."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from megatron_resrl.observe.timers import PhaseTimers
from megatron_resrl.platform.phases import named_phase

PHASES = ("rollout", "reward", "scoring", "subspace", "update", "sync")
"""The parts of a step's time that are always reported; the rest is "other"."""


@contextlib.contextmanager
def phase(timers: PhaseTimers, name: str) -> Iterator[None]:
    """Times the block as phase `name`; a collective that times out inside says so."""
    with timers.phase(name), named_phase(name):
        yield
