"""Where a benchmark ran, for the first lines of its report."""

from __future__ import annotations

import os
import platform
import re
import shlex
import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

_OF_THE_MACHINE = ("--output", "--numbers", "--vllm-python", "--transfer-dir")
"""Options with a path, which says nothing of what is measured."""


def command() -> str:
    """The command line of this benchmark, without paths of the machine."""
    arguments, kept = iter(sys.argv[1:]), []
    for argument in arguments:
        name, given, _ = argument.partition("=")
        if name not in _OF_THE_MACHINE:
            kept.append(argument)
        elif not given:
            next(arguments, None)
    return shlex.join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *kept])


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
