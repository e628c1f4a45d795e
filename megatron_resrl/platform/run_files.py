"""Names of what a run leaves in its output directory, for programs that read it without torch."""

from __future__ import annotations

import re
from pathlib import Path

FINISHED = "finished.json"
"""There once the last step is saved and the policy exported."""
INTERRUPTED = "interrupted.json"
"""There while the run is interrupted, deleted when it resumes."""
CHECKPOINTS = "checkpoints"
"""Folder with a folder for each checkpoint."""

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
