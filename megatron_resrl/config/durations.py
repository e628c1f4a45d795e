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
    wrong = ValueError(f"{duration!r} is no length of time above 0")
    match = _CLOCK.fullmatch(duration.strip()) if isinstance(duration, str) else None
    if match is None:
        try:
            seconds = float(duration)
        except ValueError:
            raise wrong from None
    else:
        parts = [int(part) for part in match["parts"].split(":")]
        if any(part >= 60 for part in parts[1:]):
            raise wrong
        if match["days"]:
            parts = [int(match["days"]) * 24 + parts[0], *parts[1:], 0][:3]
        seconds = 0.0
        for part in parts:
            seconds = seconds * 60 + part
    if not (seconds > 0 and math.isfinite(seconds)):
        raise wrong
    return seconds
