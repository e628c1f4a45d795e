"""The output directory: that it can be written to, and has room for what the run saves."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from megatron_resrl.checks.facts import Facts
from megatron_resrl.checks.sizes import disk_needed
from megatron_resrl.config.problems import Problem
from megatron_resrl.platform.disk import existing_parent, in_words
from megatron_resrl.policy.sizes import sizes_of


def _problem(facts: Facts, problem: str, fix: str) -> Problem:
    return Problem("output_dir", facts.recipe.output_dir, problem, fix, "machine")


def _check_directory(facts: Facts) -> Iterator[Problem]:
    """Tries the nearest folder that is there; nothing stays."""
    path = Path(facts.recipe.output_dir)
    fix = "give a directory that can be made and written to"
    try:
        link = next((p for p in (path, *path.parents) if p.is_symlink() and not p.exists()), None)
        if link is not None:
            yield _problem(facts, f"{link} is a link to {os.readlink(link)}, which is gone", fix)
            return
        place = existing_parent(path)
    except (OSError, ValueError) as error:
        yield _problem(facts, f"no path can be like this ({error})", fix)
        return
    if not place.is_dir():
        yield _problem(facts, f"{place} is a file", fix)
        return
    try:
        # Rights alone do not tell: of the superuser, on read-only and special file systems.
        os.rmdir(tempfile.mkdtemp(dir=place))
    except OSError as error:
        reason = error.strerror or str(error)
        yield _problem(facts, f"{place} cannot be written to ({reason})", fix)


def _check_room(facts: Facts) -> Iterator[Problem]:
    """Asks for the first checkpoint, and notes what is missing for all that the run keeps."""
    if not facts.hf_config or facts.data_parallel_size is None:
        return
    try:
        recipe = facts.recipe
        sizes = sizes_of(recipe.parallel, recipe.precision, facts.world_size, facts.hf_config)
        first, needed = disk_needed(recipe, sizes)
        place = existing_parent(Path(recipe.output_dir) / "checkpoints")
        usage = shutil.disk_usage(place)
        free = usage.free
    except (KeyError, TypeError, ZeroDivisionError, OSError, ValueError):
        return  # Said by the checks of the model and of the directory.
    if usage.total == 0:
        return  # Some file systems do not say how large they are.
    if free < first:
        yield _problem(
            facts,
            f"no space left for a checkpoint on {place}: {in_words(free)} free, needs "
            f"{in_words(first)}",
            "make room or choose another directory",
        )
    elif free < needed:
        text = (
            f"{in_words(free)} are free on {place}; checkpoints of {in_words(first)} (keep_last "
            f"{facts.recipe.checkpoint.keep_last} and the one being written) and the export need "
            f"{in_words(needed)}"
        )
        fix = "make room, or keep fewer (checkpoint.keep_last)"
        yield Problem("output_dir", facts.recipe.output_dir, text, fix, "note")


OUTPUT_CHECKS = (_check_directory,)
"""For training and evaluation."""
ROOM_CHECKS = (_check_room,)
"""For training only."""
