"""Time limits as Slurm writes them."""

from __future__ import annotations

import re

from megatron_resrl.config import durations

_FORMS = "minutes, minutes:seconds, hours:minutes:seconds, days-hours or days-hours:minutes:seconds"
_LIMIT = re.compile(r"(?:(?P<days>\d+)-)?(?P<clock>\d+(?::\d{1,2}){0,2})")


def seconds_of(limit: str) -> int:
    """Seconds of a time limit such as `90`, `04:00:00` or `1-12`.

    Raises:
        ValueError: It is none; says which forms there are.
    """
    match = _LIMIT.fullmatch(limit.strip())
    if match is None:
        raise ValueError(f"a time limit is {_FORMS}")
    # What other durations do not have: minutes alone, and days with hours alone.
    if ":" not in match["clock"]:
        limit = f"{match['days']}-{match['clock']}:00" if match["days"] else f"{limit}:00"
    try:
        return int(durations.seconds_of(limit))
    except ValueError as error:
        raise ValueError(f"a time limit is longer than 0, and {_FORMS}") from error


def time_limit(seconds: float) -> str:
    """A time limit of at least so many seconds, in whole minutes: `04:10:00` or `2-00:00:00`."""
    minutes = -(-int(-(-seconds // 1)) // 60)
    days, rest = divmod(minutes, 24 * 60)
    return (f"{days}-" if days else "") + f"{rest // 60:02d}:{rest % 60:02d}:00"
