"""Where a benchmark ran, for the first lines of its report."""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path


def describe(packages: Sequence[str], threads: int) -> str:
    """Processor, versions, threads, and how busy the machine is now.

    Args:
        packages: Distributions whose versions matter.
        threads: Of one process's tensor operations.
    """
    information = Path("/proc/cpuinfo")
    found = information.is_file() and re.search(r"model name\s+: (.*)", information.read_text())
    processor = found[1] if found else platform.processor()
    versions = [f"Python {platform.python_version()}"]
    versions += [f"{package} {version(package)}" for package in packages]
    return (
        f"{processor}, {os.cpu_count()} cores; {', '.join(versions)}; {threads} thread(s); "
        f"load average of the machine at the start {os.getloadavg()[0]:.1f}"
    )
