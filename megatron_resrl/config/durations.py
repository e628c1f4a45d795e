"""Lengths of time as settings have them: seconds, m:ss, h:mm:ss or d-hh:mm:ss (Slurm's form)."""

from __future__ import annotations

import math
import re

_CLOCK = re.compile(r"(?:(?P<days>\d+)-)?(?P<parts>\d+(?::\d{1,2}){1,2})")


def seconds_of(duration: str | float) -> float:
    """Seconds of a duration.

    Args:
        duration: A number of seconds, or text like `3600`, `90:00`, `4:00:00` or `1-12:00:00`.
            With days the parts behind `-` are hours and minutes, then seconds.

    Raises:
        ValueError: It is no duration above 0.
    """
    match = _CLOCK.fullmatch(duration.strip()) if isinstance(duration, str) else None
    if match is None:
        seconds = float(duration)
    else:
        parts = [int(part) for part in match["parts"].split(":")]
        if any(part >= 60 for part in parts[1:]):
            raise ValueError(f"{duration!r} has minutes or seconds above 59")
        if match["days"]:
            parts = [int(match["days"]) * 24 + parts[0], *parts[1:], 0][:3]
        seconds = 0.0
        for part in parts:
            seconds = seconds * 60 + part
    if not (seconds > 0 and math.isfinite(seconds)):
        raise ValueError(f"{duration!r} is no length of time above 0")
    return seconds
