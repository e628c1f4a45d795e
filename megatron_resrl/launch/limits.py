"""The time limit of a job against what one start of it needs."""

from __future__ import annotations

import math
from collections.abc import Iterator

from megatron_resrl.config.problems import Problem
from megatron_resrl.launch.slurm_time import seconds_of, time_limit

START_UP_S = 30.0
"""Seconds in which ranks at least start: Python, its libraries, process groups, weights."""

_LEAST_S, _DEFAULT_S = 300, 600
"""Seconds before the limit at which a run is asked to end: the least by forecast, and without."""

_ENDING_S = 60
"""Seconds in which the processes of a run that is saved end."""

_STEPS = 2.0
"""So many steps and saves are left room for; a forecast is no promise."""


def save_before(step_s: float | None, save_s: float) -> int:
    """Seconds before its limit at which a job is to be asked to save and end.

    Args:
        step_s: Of a step by forecast; None: unknown.
        save_s: Of a checkpoint by forecast.
    """
    if step_s is None:
        return _DEFAULT_S
    return max(_LEAST_S, math.ceil(_STEPS * (step_s + save_s) / 60) * 60)


def time_budget(limit: str) -> int:
    """Seconds within which a run keeps itself, so that it ends before its job's limit."""
    return max(1, seconds_of(limit) - _ENDING_S)


def limit_problems(limit: str | None, before: int, step_s: float | None) -> Iterator[Problem]:
    """A limit within which no step is done and saved.

    Args:
        limit: Time limit as Slurm writes it; None: the partition's.
        before: Seconds before it at which the run is asked to end.
        step_s: Seconds of a step by forecast; None: unknown.
    """
    if step_s is not None and before < step_s:
        problem = f"a step takes {step_s:.0f} s by `plan`, and is finished before the run saves"
        yield Problem("--save_before", before, problem, f"give at least {math.ceil(2 * step_s)}")
    if limit is None:
        return
    needed = START_UP_S + (step_s or 0.0) + before
    if seconds_of(limit) < needed:
        step = "" if step_s is None else f", a step ({step_s:.0f} s by `plan`)"
        problem = (
            f"too short for the start ({START_UP_S:.0f} s){step} and the {before} s before the "
            "limit at which the run saves and ends (--save_before)"
        )
        yield Problem("--time", limit, problem, f"give at least {time_limit(needed)}")
