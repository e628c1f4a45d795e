"""What a run leaves in its output directory, for programs that read it without torch: names of
files, and the parts of checkpoints that are plain files."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

LOCK = "run.lock"
"""There while a run writes into the directory."""
STATUS = "status.json"
"""What the run is doing, or how it ended; replaced every few seconds."""
HISTORY = "history.jsonl"
"""One line for each start and each end of a process of the run."""
METRICS = "metrics.jsonl"
"""One line for each step."""
ROLLBACKS = "rollbacks.jsonl"
"""One line for each time that the run went back to a checkpoint."""
FINISHED = "finished.json"
"""There once the last step is saved and the policy exported."""
INTERRUPTED = "interrupted.json"
"""There while the run is interrupted, deleted when it resumes."""
CHECKPOINTS = "checkpoints"
"""Folder with a folder for each checkpoint."""

TRAINER_FILE = "trainer.json"
"""Of a checkpoint: the trainer's state."""
SIZES_FILE = "sizes.json"
"""Of a checkpoint: the size of each of its files."""
LATEST = "latest"
"""Beside checkpoints: names the one that was written last."""
BEST = "best"
"""Beside checkpoints: names the best one, if asked for."""

_STEP = re.compile(r"step_(\d{6,})")


def is_checkpoint_name(name: str) -> bool:
    """Whether a folder's name is that of a finished checkpoint."""
    return _STEP.fullmatch(name) is not None


def finished_checkpoints(root: Path) -> list[Path]:
    """Folders in `root` that have the final name of a checkpoint, in any order."""
    if not root.is_dir():
        return []
    return [path for path in root.iterdir() if is_checkpoint_name(path.name) and path.is_dir()]


def step_of(path: Path) -> int:
    """Training steps of a checkpoint, from its name."""
    match = _STEP.fullmatch(path.name)
    if match is None:
        raise ValueError(f"{path} is not named like a checkpoint")
    return int(match[1])


def newest_step(output_dir: Path) -> int:
    """Training steps of a run's newest checkpoint; 0: it has none."""
    root = output_dir / CHECKPOINTS
    return max(map(step_of, finished_checkpoints(root)), default=0)


def read_marker(root: Path, marker: str) -> Path | None:
    """What `latest` or `best` names; None without such a file."""
    try:
        return root / (root / marker).read_text(errors="replace").strip()
    except FileNotFoundError:
        return None


def read_sizes(checkpoint: Path) -> dict[str, int] | None:
    """Sizes that a checkpoint's files should have; None: an older version, which noted none.

    Raises:
        ValueError: The list is damaged.
    """
    try:
        sizes = json.loads((checkpoint / SIZES_FILE).read_text())
        return {str(name): int(size) for name, size in sizes.items()}
    except FileNotFoundError:
        return None
    except (TypeError, AttributeError) as error:
        raise ValueError(str(error)) from error


def write_whole(path: Path, content: dict[str, Any]) -> None:
    """Writes an object as JSON, see `replace_file`."""
    replace_file(path, json.dumps(content) + "\n")


def replace_file(path: Path, text: str, *, durable: bool = False) -> None:
    """Writes a file that readers see either whole or not at all.

    Args:
        path: Of the file; it may be there already.
        text: What it will hold.
        durable: It is on stable storage when this returns.
    """
    new = path.with_name(f"{path.name}.new")
    new.write_text(text, encoding="utf-8")
    if durable:
        sync(new)
    os.replace(new, path)
    if durable:
        sync(path.parent)


def sync(path: Path) -> None:
    """Puts a file's or folder's contents on stable storage."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read_object(path: Path) -> dict[str, Any] | None:
    """A JSON object; None if there is no such file, or no whole one."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return None
    return content if isinstance(content, dict) else None


def read_lines(path: Path, last_bytes: int | None = None) -> list[dict[str, Any]]:
    """Objects of a file of JSON lines; lines that are not whole are left out.

    Args:
        path: Of the file; if there is none, there are no lines.
        last_bytes: Read only so much of its end; None: all.
    """
    try:
        with path.open("rb") as file:
            if last_bytes is not None:
                file.seek(max(0, path.stat().st_size - last_bytes))
            lines = file.read().split(b"\n")[:-1]
    except FileNotFoundError:
        return []
    found = []
    for line in lines:
        try:
            found.append(json.loads(line))
        except ValueError:
            continue
    return [each for each in found if isinstance(each, dict)]
