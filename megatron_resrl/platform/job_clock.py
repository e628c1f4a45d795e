"""How long this job has been running, as whoever limits its time counts."""

from __future__ import annotations

import time
from collections.abc import Mapping

import psutil


def job_seconds(environment: Mapping[str, str]) -> float:
    """Seconds since the job began: since Slurm's allocation did, else since this process did.

    What a job does before its ranks start, such as unpacking a container, counts against Slurm's
    limit, too.

    Args:
        environment: Of the process; `SLURM_JOB_START_TIME` is in seconds since 1970.
    """
    start = environment.get("SLURM_JOB_START_TIME", "")
    if start.isdecimal() and int(start) > 0:
        return time.time() - int(start)
    return time.time() - psutil.Process().create_time()
