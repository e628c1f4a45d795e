"""Checkpoint folders on disk: finds whole folders and the latest, and deletes old ones.

    <output_dir>/checkpoints/latest                    name of the checkpoint written last
    <output_dir>/checkpoints/best                      name of the best one, if asked for
    <output_dir>/checkpoints/step_000012/              whole: it got this name when it was
    <output_dir>/checkpoints/step_000014.incomplete/   being written, or left by a killed run
    <output_dir>/checkpoints/step_000010.removed/      being deleted, or left by a killed run

Everything here is plain file handling for one process, global rank 0.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import shutil
from pathlib import Path
from typing import Any

from torch.distributed.checkpoint import Metadata

from megatron_resrl.checkpoint.checksums import SUMS_FILE, sums_size, write_sums
from megatron_resrl.checkpoint.retention import Retention
from megatron_resrl.errors import InputError, RunFileError
from megatron_resrl.platform.run_files import (
    BEST,
    CHECKPOINTS,
    LATEST,
    SIZES_FILE,
    TRAINER_FILE,
    finished_checkpoints,
    is_checkpoint_name,
    read_marker,
    read_sizes,
    replace_file,
    step_of,
    sync,
)
from megatron_resrl.weights import torch_dist_files
from megatron_resrl.weights.torch_dist_files import COMMON_FILE

logger = logging.getLogger(__name__)

_MEGATRON_PARTS = ("metadata.json", ".metadata")
_PARTS = (TRAINER_FILE, *_MEGATRON_PARTS, COMMON_FILE, SUMS_FILE)
_INCOMPLETE = ".incomplete"
_REMOVED = ".removed"


class CheckpointError(RunFileError):
    """A checkpoint is missing, damaged, or does not fit the run; the message says what to do."""

    common = True


def latest_checkpoint(output_dir: Path) -> Path | None:
    """The first of `candidates` that is whole; None if there is none. Contents are not read."""
    for path in candidates(output_dir):
        try:
            check_whole(path)
        except CheckpointError as problem:
            logger.warning("%s; trying an older checkpoint", problem)
        else:
            return path
    return None


def candidates(output_dir: Path) -> list[Path]:
    """Checkpoints of a run in the order in which to try to continue from them.

    First the one that the marker file names, then the others, those with the most steps first.
    Where the marker is missing or names none of them, the log says so.
    """
    root = Path(output_dir) / CHECKPOINTS
    named = read_marker(root, LATEST)
    found = sorted(finished_checkpoints(root), key=step_of, reverse=True)
    if named in found:
        found.remove(named)
        found.insert(0, named)
    elif found:
        logger.warning(
            "%s %s; looking for the newest whole checkpoint beside it",
            root / LATEST,
            "is missing" if named is None else f"names {named.name!r}, which is not there",
        )
    return found


def check_whole(path: Path, *, of_run: bool = True) -> None:
    """Checks that every file of a checkpoint is there and as long as its index says.

    Args:
        path: Its folder.
        of_run: Require the files that a run resumes from; False: only megatron-core's files.

    Raises:
        CheckpointError: Names the folder, what is wrong and what to do.
    """
    advice = (
        "remove the folder to continue from an older checkpoint, or set checkpoint.resume to "
        "never to start again"
    )
    if not path.is_dir():
        raise CheckpointError(f"checkpoint {path} does not exist")
    if path.suffix in (_INCOMPLETE, _REMOVED):
        raise CheckpointError(f"checkpoint {path} was not written to its end; {advice}")
    parts = _PARTS if of_run else _MEGATRON_PARTS
    missing = [name for name in parts if not (path / name).is_file()]
    if missing:
        raise CheckpointError(f"checkpoint {path} lacks {', '.join(missing)}; {advice}")
    index = read_index(path)
    if not torch_dist_files.holds_common(path, index):
        raise CheckpointError(f"checkpoint {path} lacks {COMMON_FILE}; {advice}")
    sizes = torch_dist_files.indexed_sizes(index)
    if of_run:
        sizes |= _noted_sizes(path)
    for name, size in sizes.items():
        file = path / name
        found = file.stat().st_size if file.is_file() else None
        if found is None or found < size:
            state = "is missing" if found is None else f"has {found} of {size} bytes"
            raise CheckpointError(f"checkpoint {path}: {name} {state}; {advice}")
    if of_run:
        read_trainer_file(path)


def read_trainer_file(path: Path) -> dict[str, Any]:
    """Contents of a checkpoint's trainer.json.

    Raises:
        CheckpointError: It is not JSON.
    """
    try:
        return json.loads((path / TRAINER_FILE).read_text())
    except ValueError as error:
        raise CheckpointError(f"{path / TRAINER_FILE} is not JSON: {error}") from error


def read_index(path: Path) -> Metadata:
    """The index that maps tensors to files.

    Raises:
        CheckpointError: There is none, or it is damaged.
    """
    try:
        return torch_dist_files.read_index(path)
    except InputError as error:
        raise CheckpointError(str(error)) from error


def begin(output_dir: Path, step: int) -> Path:
    """Deletes the unfinished folders of killed runs, and makes an empty folder.

    Returns:
        The folder to write into; `publish` gives it its final name.

    Raises:
        CheckpointError: The disk has no room for another checkpoint as large as the latest.
    """
    root = Path(output_dir) / CHECKPOINTS
    root.mkdir(parents=True, exist_ok=True)
    for path in root.iterdir():
        if path.suffix in (_INCOMPLETE, _REMOVED) and is_checkpoint_name(path.stem):
            logger.info("deleting %s, left by a run that was stopped", path)
            shutil.rmtree(path)
    _check_room(root)
    folder = root / f"step_{step:06d}{_INCOMPLETE}"
    folder.mkdir()
    return folder


def publish(
    folder: Path, trainer: dict[str, Any], digests: dict[str, str], retention: Retention
) -> Path:
    """Turns a folder that all ranks have written into the latest checkpoint.

    Args:
        folder: From `begin`, with the shards of all ranks.
        trainer: Contents of trainer.json; `step` and `metrics` decide what is kept.
        digests: SHA-256 of shards by name, where known.
        retention: Which older checkpoints stay. Those of more steps, left by a run that this one
            replaces, are neither counted nor touched.

    Returns:
        The checkpoint under its final name.

    Raises:
        CheckpointError: Shards are not there. On several hosts: `output_dir` is not shared.
    """
    (folder / TRAINER_FILE).write_text(json.dumps(trainer, indent=2))
    for name, size in torch_dist_files.indexed_sizes(read_index(folder)).items():
        file = folder / name
        if not file.is_file() or file.stat().st_size < size:
            raise CheckpointError(
                f"{file} did not arrive on the host of rank 0; output_dir must be on a file "
                "system that all hosts share"
            )
    _note_sizes(folder)
    write_sums(folder, digests)
    for path in [*folder.rglob("*"), folder]:
        sync(path)
    path = folder.with_suffix("")
    if path.exists():
        _discard(path)
    os.rename(folder, path)
    sync(path.parent)
    _write_marker(path, LATEST)
    _retain(path, retention)
    return path


def abandon(folder: Path) -> None:
    """Deletes a folder from `begin` whose checkpoint could not be written."""
    shutil.rmtree(folder, ignore_errors=True)


def make_latest(path: Path) -> None:
    """Makes a checkpoint the one to continue from, and deletes those of more steps."""
    _write_marker(path, LATEST)
    for other in finished_checkpoints(path.parent):
        if step_of(other) > step_of(path):
            _discard(other)


def _note_sizes(folder: Path) -> None:
    """Writes the size of every file, so that a truncated file is detected without reading it."""
    sizes = {
        path.relative_to(folder).as_posix(): path.stat().st_size
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
    names = [*sizes, SIZES_FILE]
    sizes[SUMS_FILE] = sums_size(names)
    (folder / SIZES_FILE).write_text(json.dumps(sizes, indent=2) + "\n")


def _noted_sizes(path: Path) -> dict[str, int]:
    """Sizes of a checkpoint's files; of one that an older version wrote, that they are not empty.

    Raises:
        CheckpointError: The list is damaged.
    """
    try:
        sizes = read_sizes(path)
    except ValueError as error:
        raise CheckpointError(
            f"checkpoint {path}: {SIZES_FILE} is damaged ({error}); remove the folder to continue "
            "from an older checkpoint"
        ) from error
    return dict.fromkeys(_PARTS, 1) if sizes is None else sizes


def _check_room(root: Path) -> None:
    latest = read_marker(root, LATEST)
    if latest is None or not latest.is_dir():
        return
    needed = sum(path.stat().st_size for path in latest.rglob("*"))
    free = shutil.disk_usage(root).free
    if free < needed:
        raise CheckpointError(
            f"no space left on {root}: {free / 1e9:.3g} GB free, needs {needed / 1e9:.3g} GB like "
            f"{latest.name}; make room, or keep fewer (checkpoint.keep_last)"
        )


def _retain(latest: Path, retention: Retention) -> None:
    """Deletes checkpoints that retention does not keep, and marks the best checkpoint."""
    older = [
        path for path in finished_checkpoints(latest.parent) if step_of(path) <= step_of(latest)
    ]
    metrics = {}
    for path in older if retention.best_metric else ():
        with contextlib.suppress(CheckpointError):
            metrics[step_of(path)] = read_trainer_file(path).get("metrics", {})
    best = retention.best(metrics)
    if best is not None:
        _write_marker(next(path for path in older if step_of(path) == best), BEST)
    kept = retention.kept([step_of(path) for path in older], best)
    for path in older:
        if step_of(path) not in kept:
            _discard(path)


def _write_marker(path: Path, marker: str) -> None:
    replace_file(path.parent / marker, path.name + "\n", durable=True)


def _discard(path: Path) -> None:
    """Deletes a checkpoint; if interrupted, what remains does not look whole."""
    removed = path.with_name(path.name + _REMOVED)
    os.rename(path, removed)
    shutil.rmtree(removed)
