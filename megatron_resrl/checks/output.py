"""The output directory: that it can be written to, and has room for what the run saves."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from megatron_resrl.checks.facts import RunCheck, RunFacts
from megatron_resrl.checks.sizes import disk_needed
from megatron_resrl.config.problems import Problem
from megatron_resrl.config.schema import RunSettings
from megatron_resrl.platform.disk import existing_parent, format_bytes
from megatron_resrl.policy.sizes import sizes_of


def check_directory(setting: str, directory: str) -> Iterator[Problem]:
    """Whether a directory is there, or can be made, and can be written to.

    Tries the nearest folder that is there; nothing stays.
    """

    def unusable(problem: str) -> Problem:
        fix = "give a directory that can be made and written to"
        return Problem(setting, directory, problem, fix, "machine")

    path = Path(directory)
    try:
        link = next((p for p in (path, *path.parents) if p.is_symlink() and not p.exists()), None)
        if link is not None:
            yield unusable(f"{link} is a link to {os.readlink(link)}, which is gone")
            return
        place = existing_parent(path)
    except (OSError, ValueError) as error:
        yield unusable(f"no path can be like this ({error})")
        return
    if not place.is_dir():
        yield unusable(f"{place} is a file")
        return
    try:
        # Rights alone do not tell: of the superuser, on read-only and special file systems.
        os.rmdir(tempfile.mkdtemp(dir=place))
    except OSError as error:
        reason = error.strerror or str(error)
        yield unusable(f"{place} cannot be written to ({reason})")


def _check_room(
    settings: RunSettings, world_size: int, hf_config: Mapping[str, Any]
) -> Iterator[Problem]:
    """Asks for the first checkpoint, and notes what is missing for all that the run keeps."""
    output_dir = settings.output_dir
    try:
        sizes = sizes_of(settings.parallel, settings.precision, world_size, dict(hf_config))
        first, needed = disk_needed(settings, sizes)
        place = existing_parent(Path(output_dir) / "checkpoints")
        usage = shutil.disk_usage(place)
        free = usage.free
    except (KeyError, TypeError, ZeroDivisionError, OSError, ValueError):
        return  # Said by the checks of the model and of the directory.
    if usage.total == 0:
        return  # Some file systems do not say how large they are.
    if free < first:
        text = (
            f"no space left for a checkpoint on {place}: {format_bytes(free)} free, needs "
            f"{format_bytes(first)}"
        )
        fix = "make room or choose another directory"
        yield Problem("output_dir", output_dir, text, fix, "machine")
    elif free < needed:
        text = (
            f"{format_bytes(free)} are free on {place}; checkpoints of {format_bytes(first)} "
            f"(keep_last {settings.checkpoint.keep_last} and the one being written) and the "
            f"export need {format_bytes(needed)}"
        )
        fix = "make room, or keep fewer (checkpoint.keep_last)"
        yield Problem("output_dir", output_dir, text, fix, "note")


def _of_a_known_layout(facts: RunFacts) -> Iterator[Problem]:
    if facts.hf_config and facts.data_parallel_size is not None:
        yield from _check_room(facts.recipe, facts.world_size, facts.hf_config)


OUTPUT_CHECKS: tuple[RunCheck, ...] = (
    lambda facts: check_directory("output_dir", facts.recipe.output_dir),
)
"""For every command."""
ROOM_CHECKS: tuple[RunCheck, ...] = (_of_a_known_layout,)
"""For every stage of training."""
