"""A directory that a command writes whole or not at all."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

from megatron_resrl.errors import InputError
from megatron_resrl.platform.disk import existing_parent, format_bytes, report_full_disk


@contextlib.contextmanager
def atomic_directory(
    output: Path, *, sources: Sequence[Path], force: bool, needed: int
) -> Iterator[Path]:
    """A temporary directory that becomes `output` if the block succeeds, and is deleted otherwise.

    Args:
        output: Final path of the directory.
        sources: Paths of the input, which must not overlap with `output`.
        force: Replace an existing `output`.
        needed: Bytes that will be written.

    Yields:
        `<output>.incomplete`, empty.

    Raises:
        InputError: The name is taken, or inside of a source or around it, the disk has no room,
            or the directory cannot be made.
        DiskFull: The disk was filled meanwhile.
    """
    output = output.resolve()
    for source in (each.resolve() for each in sources):
        if output == source or output in source.parents or source in output.parents:
            problem = f"--output {output} overlaps with --input {source}"
            raise InputError(f"{problem}; choose another place")
    taken = output.exists() and not (output.is_dir() and not any(output.iterdir()))
    if taken and not force:
        raise InputError(
            f"--output {output} is not empty; choose another directory, or give --force to "
            "replace it"
        )
    incomplete = output.with_name(output.name + ".incomplete")
    shutil.rmtree(incomplete, ignore_errors=True)
    place = existing_parent(output)
    free = shutil.disk_usage(place).free
    if free < needed:
        raise InputError(
            f"--output {output}: no space left on {place}: {format_bytes(free)} free, needs "
            f"{format_bytes(needed)}"
        )
    try:
        incomplete.mkdir(parents=True)
    except OSError as error:
        raise InputError(f"--output {output} cannot be made: {error}") from error
    try:
        with report_full_disk(output.parent, needed):
            yield incomplete
            if output.is_dir():
                shutil.rmtree(output)
            output.unlink(missing_ok=True)
            incomplete.rename(output)
    except BaseException:
        shutil.rmtree(incomplete, ignore_errors=True)
        raise
