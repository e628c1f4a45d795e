"""Checkpoint folders on disk: which are whole, which is the latest, which are too old.

    <output_dir>/checkpoints/latest                    name of the checkpoint written last
    <output_dir>/checkpoints/step_000012/              whole: it got this name when it was
    <output_dir>/checkpoints/step_000014.incomplete/   being written, or left by a killed run
    <output_dir>/checkpoints/step_000010.removed/      being deleted, or left by a killed run

Everything here is plain file handling for one process, global rank 0.
"""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
from pathlib import Path
from typing import Any

from torch.distributed.checkpoint import FileSystemReader

logger = logging.getLogger(__name__)

TRAINER_FILE = "trainer.json"
MARKER = "latest"
_PARTS = (TRAINER_FILE, "metadata.json", "common.pt", ".metadata")
_NAME = re.compile(r"step_(\d{6,})")
_INCOMPLETE = ".incomplete"
_REMOVED = ".removed"


class CheckpointError(RuntimeError):
    """A checkpoint is missing, damaged, or does not fit the run; the message says what to do."""


def latest_checkpoint(output_dir: Path) -> Path | None:
    """The whole checkpoint to continue from.

    It is the one that the marker file names. Where the marker is missing or names nothing whole,
    it is the whole one with the most steps, and the log says so.

    Args:
        output_dir: Of the run.

    Returns:
        Its folder, or None if there is no whole checkpoint.
    """
    root = Path(output_dir) / "checkpoints"
    named = _read_marker(root)
    candidates = sorted(_finished(root), key=_step, reverse=True)
    if named in candidates:
        candidates.remove(named)
        candidates.insert(0, named)
    elif candidates:
        logger.warning(
            "%s %s; looking for the newest whole checkpoint beside it",
            root / MARKER,
            "is missing" if named is None else f"names {named.name!r}, which is not there",
        )
    for path in candidates:
        try:
            check_whole(path)
        except CheckpointError as problem:
            logger.warning("%s; trying an older checkpoint", problem)
        else:
            return path
    return None


def check_whole(path: Path) -> None:
    """Checks that every file of a checkpoint is there and as long as its index says.

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
    missing = [name for name in _PARTS if not (path / name).is_file()]
    if missing:
        raise CheckpointError(f"checkpoint {path} lacks {', '.join(missing)}; {advice}")
    for name, size in _indexed_sizes(path).items():
        file = path / name
        found = file.stat().st_size if file.is_file() else None
        if found is None or found < size:
            state = "is missing" if found is None else f"has {found} of {size} bytes"
            raise CheckpointError(f"checkpoint {path}: {name} {state}; {advice}")


def read_trainer_file(path: Path) -> dict[str, Any]:
    """Contents of a checkpoint's trainer.json.

    Raises:
        CheckpointError: It is not JSON.
    """
    try:
        return json.loads((path / TRAINER_FILE).read_text())
    except ValueError as error:
        raise CheckpointError(f"{path / TRAINER_FILE} is not JSON: {error}") from error


def begin(output_dir: Path, step: int) -> Path:
    """Deletes what killed runs left half-written or half-deleted, and makes an empty folder.

    Returns:
        The folder to write into; `publish` gives it its final name.
    """
    root = Path(output_dir) / "checkpoints"
    root.mkdir(parents=True, exist_ok=True)
    for path in root.iterdir():
        if path.suffix in (_INCOMPLETE, _REMOVED) and _NAME.fullmatch(path.stem):
            logger.info("deleting %s, left by a run that was stopped", path)
            shutil.rmtree(path)
    folder = root / f"step_{step:06d}{_INCOMPLETE}"
    folder.mkdir()
    return folder


def publish(folder: Path, trainer: dict[str, Any], keep_last: int) -> Path:
    """Turns a folder that all ranks have written into the latest checkpoint.

    Args:
        folder: From `begin`, with the shards of all ranks.
        trainer: Contents of trainer.json.
        keep_last: Older checkpoints are deleted so that this many remain. Those of more steps,
            left by a run that this one replaces, are neither counted nor touched.

    Returns:
        The checkpoint under its final name.

    Raises:
        CheckpointError: Shards are not there. On several hosts: `output_dir` is not shared.
    """
    (folder / TRAINER_FILE).write_text(json.dumps(trainer, indent=2))
    for name, size in _indexed_sizes(folder).items():
        file = folder / name
        if not file.is_file() or file.stat().st_size < size:
            raise CheckpointError(
                f"{file} did not arrive on the host of rank 0; output_dir must be on a file "
                "system that all hosts share"
            )
    for file in folder.iterdir():
        _sync(file)
    _sync(folder)
    path = folder.with_suffix("")
    if path.exists():
        _discard(path)
    os.rename(folder, path)
    _sync(path.parent)
    _write_marker(path)
    older = sorted((p for p in _finished(path.parent) if _step(p) <= _step(path)), key=_step)
    for old in older[:-keep_last]:
        _discard(old)
    return path


def _finished(root: Path) -> list[Path]:
    """Folders under a final name."""
    if not root.is_dir():
        return []
    return [path for path in root.iterdir() if _NAME.fullmatch(path.name) and path.is_dir()]


def _step(path: Path) -> int:
    return int(_NAME.fullmatch(path.name)[1])


def _indexed_sizes(path: Path) -> dict[str, int]:
    """Bytes that each shard file must have at least, by file name."""
    try:
        metadata = FileSystemReader(path).read_metadata()
    # Unpickling damaged bytes may raise anything.
    except Exception as error:
        raise CheckpointError(f"{path / '.metadata'} cannot be read: {error!r}") from error
    sizes: dict[str, int] = {}
    for item in metadata.storage_data.values():
        end = item.offset + item.length
        sizes[item.relative_path] = max(end, sizes.get(item.relative_path, 0))
    return sizes


def _read_marker(root: Path) -> Path | None:
    try:
        return root / (root / MARKER).read_text(errors="replace").strip()
    except FileNotFoundError:
        return None


def _write_marker(path: Path) -> None:
    new = path.parent / f"{MARKER}.new"
    new.write_text(path.name + "\n")
    _sync(new)
    os.replace(new, path.parent / MARKER)
    _sync(path.parent)


def _discard(path: Path) -> None:
    """Deletes a checkpoint so that a kill in between leaves nothing that looks whole."""
    removed = path.with_name(path.name + _REMOVED)
    os.rename(path, removed)
    shutil.rmtree(removed)


def _sync(path: Path) -> None:
    """Puts a file's or folder's contents on stable storage."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
