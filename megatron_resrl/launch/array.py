"""Arrays of jobs: one run for each seed, or for each line of a file with settings."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

from megatron_resrl.errors import SettingError

_INDICES = re.compile(r"\d+(-\d+(:\d+)?)?(,\d+(-\d+(:\d+)?)?)*")


@dataclass(frozen=True)
class Array:
    """Runs that differ in their seed or in other settings."""

    indices: str
    """As sbatch wants it, e.g. `0-4%2`."""
    settings: tuple[tuple[str, ...], ...] = ()
    """Command line of each run, by its index; empty: the index is the seed."""


def read_array(text: str) -> Array:
    """What `--array` says: numbers as sbatch writes them, or a file with settings in each line.

    Args:
        text: `0-4`, `1,3,5`, or a file; with `%N` behind it N runs at a time.

    Raises:
        SettingError: It is neither, or a line of the file cannot be read.
    """
    name, percent, limit = text.partition("%")
    if percent and not (limit.isdecimal() and int(limit) > 0):
        raise SettingError("--array", text, "what follows % is not a number", "e.g. 0-9%2")
    if _INDICES.fullmatch(name):
        return Array(text)
    try:
        content = Path(name).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise SettingError(
            "--array",
            text,
            f"neither numbers nor a file that can be read ({error})",
            "give seeds such as 0-4, or a file with the settings of one run in each line",
        ) from error
    runs = []
    for number, line in enumerate(content.splitlines(), 1):
        try:
            words = shlex.split(line, comments=True)
        except ValueError as error:
            problem = f"line {number} cannot be read ({error})"
            raise SettingError("--array", text, problem, "close its quotes") from error
        if words:
            runs.append(tuple(words))
    if not runs:
        raise SettingError("--array", text, "the file has no settings", "write one run in a line")
    return Array(f"0-{len(runs) - 1}{percent}{limit}", tuple(runs))
