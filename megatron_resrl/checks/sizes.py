"""What `check` says of the size of a run, and the disk that it needs."""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from megatron_resrl.checks.facts import RunFacts
from megatron_resrl.config.schema import RunSettings
from megatron_resrl.platform.disk import existing_parent, format_bytes
from megatron_resrl.policy.sizes import Sizes, sizes_of

_DEVICE_BYTES = 80e9
"""Of an H100, the device to compare with where there is none."""


def disk_needed(recipe: RunSettings, sizes: Sizes) -> tuple[int, int]:
    """Bytes that must be free for the run: for its first checkpoint, and for all that it keeps.

    What is there already is replaced: a new checkpoint is written before an old one is deleted.
    """
    settings, folder = recipe.checkpoint, Path(recipe.output_dir) / "checkpoints"
    saves = math.ceil(recipe.steps / settings.save_every) if settings.save_every else 1
    there = 0 if settings.resume == "never" else len(list(folder.glob("step_*[0-9]")))
    kept = max(1, min(settings.keep_last + 1, there + saves) - there)
    export = sizes.export if settings.export_hf else 0
    return sizes.checkpoint, kept * sizes.checkpoint + export


def plan(facts: RunFacts) -> Iterator[str]:
    """Lines for people: what the run will take."""
    if not facts.hf_config or facts.data_parallel_size is None:
        return
    recipe = facts.recipe
    try:
        sizes = sizes_of(recipe.parallel, recipe.precision, facts.world_size, facts.hf_config)
        _, needed = disk_needed(recipe, sizes)
        place = existing_parent(Path(recipe.output_dir) / "checkpoints")
        free = shutil.disk_usage(place).free
    except (KeyError, TypeError, ZeroDivisionError, OSError, ValueError):
        return  # The checks of the model and of the output directory say what is wrong.
    yield f"size: {sizes.parameters / 1e9:.3g} billion parameters"
    large = " (more than the 80 GB of an H100)" if sizes.rank > _DEVICE_BYTES else ""
    yield (
        f"  each rank: {format_bytes(sizes.rank)}{large}: weights {format_bytes(sizes.weights)}, "
        f"gradients {format_bytes(sizes.gradients)}, optimizer {format_bytes(sizes.optimizer)}; "
        "activations and the KV cache come on top"
    )
    yield f"  each step: {facts.step_in_words}"
    if recipe.checkpoint.async_save:
        yield _host_memory(sizes)
    yield (
        f"  disk: a checkpoint {format_bytes(sizes.checkpoint)}, the export "
        f"{format_bytes(sizes.export)}; {format_bytes(needed)} for what the run keeps, "
        f"{format_bytes(free)} are free on {place}"
    )


def _host_memory(sizes: Sizes) -> str:
    """What the background saves of this host's ranks take."""
    ranks = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    there = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    large = " (more than this host has)" if ranks * sizes.background_save > there else ""
    return (
        f"  host memory: {format_bytes(sizes.background_save)} for each rank{large} while a "
        f"checkpoint is written in the background; this host has {format_bytes(there)}"
    )
